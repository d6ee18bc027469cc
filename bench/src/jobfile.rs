//! Job files in fio's INI form, and the same options on the command line: text to named sections of
//! options, each of which remembers where it stands. What an option means is `options.rs`'s.
//!
//! `[global]` holds for the sections behind it, and may come again. `;` and `#` begin a comment line. An
//! option without `=` is a switch that is on.

use std::fmt;

/// Most bytes of a job file: 1 MiB.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Most sections of one run.
pub const SECTIONS_MAX: usize = 1024;

/// Where an option stands: what an error begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a file, counted from 1.
    Line(String, usize),
    /// The command line.
    Argument,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(file, line) => write!(f, "{file}:{line}"),
            Place::Argument => f.write_str("command line"),
        }
    }
}

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The key, as it was written.
    pub key: String,
    /// The value; empty for a switch.
    pub value: String,
    /// Where it stands.
    pub place: Place,
}

/// One job: its name, and every option that holds for it, `[global]`'s first. A later one wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What stands in brackets, or behind `--name=`.
    pub name: String,
    /// Where it begins.
    pub place: Place,
    /// Its options.
    pub given: Vec<Given>,
}

/// Sections in order, from files and arguments.
#[derive(Debug, Default)]
pub struct Sections {
    list: Vec<Section>,
    global: Vec<Given>,
    in_global: bool,
}

impl Sections {
    /// Reads a file's text. `Err` names file and line. Its `[global]` ends with it.
    pub fn read(&mut self, file: &str, text: &str) -> Result<(), String> {
        if text.len() > FILE_BYTES_MAX {
            return Err(format!("{file}: {} bytes are more than {FILE_BYTES_MAX}", text.len()));
        }
        let outer = self.global.clone();
        let mut any = false;
        for (index, line) in text.lines().enumerate() {
            let place = Place::Line(file.to_owned(), index + 1);
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                let name = rest.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
                self.begin(name.ok_or_else(|| format!("{place}: `{line}` is no section, as in [name]"))?, place)?;
                any = true;
            } else if any {
                self.option(line, place)?;
            } else {
                return Err(format!("{place}: `{line}` stands before the first section: [global] or [name]"));
            }
        }
        self.global = outer;
        self.in_global = false;
        Ok(())
    }

    /// Takes an argument without its dashes: `name=x` begins a job, others belong to it, or to all that
    /// follow when there is none yet.
    pub fn argument(&mut self, text: &str) -> Result<(), String> {
        match text.strip_prefix("name=") {
            Some(name) => self.begin(name, Place::Argument),
            None => {
                self.in_global |= self.list.last().is_none_or(|section| section.place != Place::Argument);
                self.option(text, Place::Argument)
            }
        }
    }

    /// What was read.
    pub fn finish(self) -> Result<Vec<Section>, String> {
        if self.list.is_empty() {
            return Err("there is no job: give a job file or --name=NAME; see --help".to_owned());
        }
        Ok(self.list)
    }

    fn begin(&mut self, name: &str, place: Place) -> Result<(), String> {
        self.in_global = name == "global";
        if self.in_global {
            return Ok(());
        }
        if self.list.len() == SECTIONS_MAX {
            return Err(format!("{place}: more than {SECTIONS_MAX} sections"));
        }
        self.list.push(Section { name: name.to_owned(), place, given: self.global.clone() });
        Ok(())
    }

    fn option(&mut self, text: &str, place: Place) -> Result<(), String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if key.is_empty() {
            return Err(format!("{place}: `{text}` has no key"));
        }
        let given = Given { key, value, place };
        if self.in_global {
            self.global.push(given);
        } else {
            let section = self.list.last_mut().expect("an option outside [global] follows a section");
            section.given.push(given);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Section>, String> {
        let mut sections = Sections::default();
        sections.read("a.fio", text)?;
        sections.finish()
    }

    fn options(section: &Section) -> String {
        section.given.iter().map(|given| format!("{}={}@{} ", given.key, given.value, given.place)).collect()
    }

    #[test]
    fn sections_inherit_what_stood_in_global_before_them() {
        let text = "; a comment\n[global]\nbs=1k\n\n[one]\niodepth = 4\n# more\n[global]\nruntime=9\n[ two ]\nbs=2k\nstonewall\n";
        let list = read(text).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!((&*list[0].name, &*list[1].name), ("one", "two"));
        assert_eq!(options(&list[0]), "bs=1k@a.fio:3 iodepth=4@a.fio:6 ");
        assert_eq!(options(&list[1]), "bs=1k@a.fio:3 runtime=9@a.fio:9 bs=2k@a.fio:11 stonewall=@a.fio:12 ");
    }

    #[test]
    fn arguments_are_jobs_too() {
        let mut sections = Sections::default();
        for argument in ["runtime=3", "name=a", "bs=1k", "name=b", "stonewall"] {
            sections.argument(argument).unwrap();
        }
        sections.read("x", "[c]\niodepth=2").unwrap();
        let list = sections.finish().unwrap();
        let all: Vec<_> = list.iter().map(options).collect();
        let on = "@command line ";
        assert_eq!(all[0], format!("runtime=3{on}bs=1k{on}"));
        assert_eq!(all[1], format!("runtime=3{on}stonewall={on}"));
        assert_eq!(all[2], format!("runtime=3{on}iodepth=2@x:2 "));
    }

    #[test]
    fn errors_name_file_and_line() {
        let table = [
            ("[a\n", "a.fio:1: `[a` is no section, as in [name]"),
            ("\n[]\n", "a.fio:2: `[]` is no section, as in [name]"),
            ("bs=1k\n", "a.fio:1: `bs=1k` stands before the first section: [global] or [name]"),
            ("[a]\n=4\n", "a.fio:2: `=4` has no key"),
            ("[global]\nbs=1k\n", "there is no job: give a job file or --name=NAME; see --help"),
        ];
        for (text, error) in table {
            assert_eq!(read(text).unwrap_err(), error);
        }
        let many: String = (0..=SECTIONS_MAX).map(|number| format!("[{number}]\n")).collect();
        assert!(read(&many).unwrap_err().contains("more than 1024 sections"));
    }
}
