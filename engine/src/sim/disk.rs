//! What is on a disk, what of it is durable, and what a power cut leaves. Bytes of files are held by pages, so that
//! prepared segments cost nothing.

use super::random::Random;
use crate::format::BLOCK_BYTES;
use crate::io::Fault;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// What a disk writes whole or not at all. Bytes.
pub const SECTOR_BYTES: usize = 512;
/// What is written at once. Bytes.
pub const PAGE_BYTES: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
/// What most reads of a recovery give. Nobody writes to it, so it takes no memory.
static BLANK: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; 4 << 20]));

type Page = Option<Arc<[u8; PAGE_BYTES]>>;

/// A file by pages; one that is missing is zero.
#[derive(Clone, Debug, Default)]
struct File {
    /// What a read gives.
    pages: BTreeMap<u64, Page>,
    length: u64,
    /// What a power cut leaves for sure.
    kept: BTreeMap<u64, Page>,
    kept_length: u64,
    /// Newer versions of pages that are not durable, oldest first, numbered in the order of completion.
    pending: BTreeMap<u64, Vec<(u64, Page)>>,
}

/// Which file of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(FileId),
}

/// A change of a directory that is not durable.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    directory: PathBuf,
    gone: Option<PathBuf>,
    new: Option<(PathBuf, Node)>,
}

/// Files and names. Nothing fails here but what cannot be done.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<PathBuf, Node>,
    kept_names: BTreeMap<PathBuf, Node>,
    changes: Vec<Change>,
    effects: u64,
}

impl Disk {
    /// How many writes and changes of names it has seen: what a sync covers is told by it.
    pub fn effects(&self) -> u64 {
        self.effects
    }

    /// Bytes that its files take.
    pub fn used(&self) -> u64 {
        let used = self.names.values().map(|node| match node {
            Node::File(file) => self.files[file.0].length,
            Node::Directory => 0,
        });
        used.sum()
    }

    /// The file with this name; `create` makes one that is missing.
    pub fn open(&mut self, path: PathBuf, create: bool) -> Result<FileId, Fault> {
        match self.names.get(&path) {
            Some(Node::File(file)) => Ok(*file),
            Some(Node::Directory) => Err(Fault(libc::EISDIR)),
            None if !create => Err(Fault(libc::ENOENT)),
            None => {
                self.files.push(File::default());
                let file = FileId(self.files.len() - 1);
                self.change(None, Some((path, Node::File(file))));
                Ok(file)
            }
        }
    }

    /// A file's length.
    pub fn length(&self, file: FileId) -> u64 {
        self.files[file.0].length
    }

    /// Makes a file longer.
    pub fn extend(&mut self, file: FileId, more: u64) {
        self.files[file.0].length += more;
    }

    /// Cuts a file. Only files of no use are cut: nobody asks what a power cut leaves of them.
    pub fn truncate(&mut self, file: FileId, length: u64) {
        let file = &mut self.files[file.0];
        file.length = length;
        file.kept_length = length;
        let page = length.div_ceil(BLOCK_BYTES);
        file.pages.split_off(&page);
        file.kept.split_off(&page);
        file.pending.split_off(&page);
    }

    /// Writes whole pages.
    pub fn write(&mut self, file: FileId, at: u64, bytes: &[u8], durable: bool) {
        self.effects += 1;
        let file = &mut self.files[file.0];
        for (page, bytes) in (at / BLOCK_BYTES..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            let version = pack(bytes);
            file.pages.insert(page, version.clone());
            if durable {
                file.pending.remove(&page);
                file.kept.insert(page, version);
                file.kept_length = file.length;
            } else {
                file.pending.entry(page).or_default().push((self.effects, version));
            }
        }
    }

    /// Up to `length` bytes: short at the file's end.
    pub fn read(&self, file: FileId, at: u64, length: u32) -> Bytes {
        let file = &self.files[file.0];
        let end = file.length.min(at + u64::from(length)).max(at);
        let mut held = file.pages.range(at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).peekable();
        while held.next_if(|(_, version)| version.is_none()).is_some() {}
        if held.peek().is_none() && end - at <= BLANK.len() as u64 {
            return BLANK.slice(..(end - at) as usize);
        }
        let mut out = vec![0; (end - at) as usize];
        for (page, version) in held {
            let Some(version) = version else { continue };
            let (from, to) = ((page * BLOCK_BYTES).max(at), (page * BLOCK_BYTES + BLOCK_BYTES).min(end));
            let inside = &version[(from - page * BLOCK_BYTES) as usize..(to - page * BLOCK_BYTES) as usize];
            out[(from - at) as usize..(to - at) as usize].copy_from_slice(inside);
        }
        Bytes::from(out)
    }

    /// Makes durable what was written up to effect `submitted`. With `failed`, any part of it.
    pub fn sync(&mut self, file: FileId, submitted: u64, failed: bool, random: &mut Random) {
        let file = &mut self.files[file.0];
        file.pending.retain(|page, versions| {
            let covered = versions.partition_point(|(number, _)| *number <= submitted);
            if covered > 0 && (!failed || random.chance(500)) {
                let (_, version) = versions.drain(..covered).next_back().expect("there is one");
                file.kept.insert(*page, version);
            }
            !versions.is_empty()
        });
        if !failed {
            file.kept_length = file.length;
        }
    }

    /// Gives a file or directory another name.
    pub fn rename(&mut self, from: PathBuf, to: PathBuf) -> Result<(), Fault> {
        let node = *self.names.get(&from).ok_or(Fault(libc::ENOENT))?;
        self.change(Some(from), Some((to, node)));
        Ok(())
    }

    /// Takes a file's name away.
    pub fn remove(&mut self, path: PathBuf) -> Result<(), Fault> {
        match self.names.get(&path) {
            Some(Node::File(_)) => {
                self.change(Some(path), None);
                Ok(())
            }
            Some(Node::Directory) => Err(Fault(libc::EISDIR)),
            None => Err(Fault(libc::ENOENT)),
        }
    }

    /// A directory and those above it.
    pub fn create_directory(&mut self, path: &Path) {
        let missing = |above: &&Path| !is_root(above) && !self.names.contains_key(*above);
        let missing: Vec<PathBuf> = path.ancestors().filter(missing).map(Path::to_path_buf).collect();
        for path in missing.into_iter().rev() {
            self.change(None, Some((path, Node::Directory)));
        }
    }

    /// Makes the changes of a directory durable, up to effect `submitted`.
    pub fn sync_directory(&mut self, path: &Path, submitted: u64) -> Result<(), Fault> {
        if !is_root(path) && self.names.get(path) != Some(&Node::Directory) {
            return Err(Fault(libc::ENOENT));
        }
        for change in std::mem::take(&mut self.changes) {
            if change.directory == path && change.number <= submitted {
                change.apply(&mut self.kept_names);
            } else {
                self.changes.push(change);
            }
        }
        Ok(())
    }

    /// The files of a directory and their lengths, by name.
    pub fn list(&self, path: &Path) -> Vec<(String, u64)> {
        let inside = self.names.iter().filter(|(name, _)| name.parent() == Some(path));
        let files = inside.filter_map(|(name, node)| match node {
            Node::File(file) => Some((name.file_name()?.to_string_lossy().into_owned(), self.length(*file))),
            Node::Directory => None,
        });
        files.collect()
    }

    /// The power goes: of what is not durable any part is lost.
    pub fn power_cut(&mut self, random: &mut Random) {
        // Some cuts lose all that can be lost, some nothing, most a part.
        let kept = [0, 1000, 500, 900, 100][random.below(5) as usize];
        for file in &mut self.files {
            for (page, versions) in std::mem::take(&mut file.pending) {
                let mut sectors = *image(&file.kept.get(&page).cloned().flatten());
                for at in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
                    if !random.chance(kept) {
                        continue;
                    }
                    let (_, version) = &versions[random.below(versions.len() as u64) as usize];
                    sectors[at..at + SECTOR_BYTES].copy_from_slice(&image(version)[at..at + SECTOR_BYTES]);
                }
                file.kept.insert(page, pack(&sectors));
            }
            file.pages = file.kept.clone();
            if random.chance(kept) {
                file.kept_length = file.length;
            }
            file.length = file.kept_length;
        }
        let survive = random.below(self.changes.len() as u64 + 1) as usize;
        for change in self.changes.drain(..).take(survive) {
            change.apply(&mut self.kept_names);
        }
        let all = self.kept_names.clone();
        let reachable = |path: &Path| path.ancestors().skip(1).all(|above| is_root(above) || all.contains_key(above));
        self.kept_names.retain(|path, _| reachable(path));
        self.names = self.kept_names.clone();
    }

    /// Flips one bit of what a file holds, in a sector that is not all zeros, or lies beside one. Returns where;
    /// `None`: all files are empty.
    pub fn rot(&mut self, random: &mut Random) -> Option<(PathBuf, u64)> {
        let held = |file: FileId| self.files[file.0].pages.iter().filter(|(_, page)| page.is_some());
        let places: Vec<(PathBuf, FileId, u64)> = self
            .names
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(file) => Some((path, *file)),
                Node::Directory => None,
            })
            .flat_map(|(path, file)| held(file).map(move |(page, _)| (path.clone(), file, *page)))
            .collect();
        if places.is_empty() {
            return None;
        }
        let (path, file, page) = places[random.below(places.len() as u64) as usize].clone();
        let file = &mut self.files[file.0];
        let mut bytes = *image(&file.pages.get(&page).cloned().flatten());
        // Pages of small batches are mostly zeros: half of the flips go where something is.
        let filled: Vec<usize> = (0..PAGE_BYTES).filter(|at| bytes[*at] != 0).collect();
        let anywhere = random.below(PAGE_BYTES as u64) as usize;
        let at = if random.chance(500) { anywhere } else { filled[random.below(filled.len() as u64) as usize] };
        bytes[at] ^= 1 << random.below(8);
        file.pages.insert(page, pack(&bytes));
        file.kept.insert(page, pack(&bytes));
        file.pending.remove(&page);
        Some((path, page * BLOCK_BYTES + at as u64))
    }

    fn change(&mut self, gone: Option<PathBuf>, new: Option<(PathBuf, Node)>) {
        self.effects += 1;
        let path = gone.as_deref().or(new.as_ref().map(|(path, _)| &**path)).expect("a change has a path");
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let change = Change { number: self.effects, directory, gone, new };
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        if let Some(path) = &self.gone {
            names.remove(path);
        }
        if let Some((path, node)) = &self.new {
            names.insert(path.clone(), *node);
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

fn image(page: &Page) -> &[u8; PAGE_BYTES] {
    page.as_deref().unwrap_or(&ZEROS)
}

fn pack(bytes: &[u8]) -> Page {
    (*bytes != ZEROS).then(|| Arc::new(bytes.try_into().expect("a whole page")))
}
