//! The key-value settings: a small table that operators fill, and the file that keeps it.
//!
//! The file has the form of a stock NameServer's `kvConfig.json`, so that either reads the
//! other's: `{"configTable":{"NAMESPACE":{"key":"value"}}}`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest namespace or key, in bytes. 255, as other names.
pub const KEY_BYTES_MAX: usize = 255;
/// What an entry costs beside its text. 64 bytes: so that empty values are bounded too.
const ENTRY_BYTES: usize = 64;
/// Names tried for a broken file that is kept aside.
const ASIDE_MAX: usize = 1000;

/// Bounds of the table.
#[derive(Clone, Debug)]
pub struct KvLimits {
    /// All text together, and 64 bytes an entry. 4 MiB (1 KiB to 8 MiB: a namespace must fit an
    /// answer even if every byte is escaped). Every change writes the whole file.
    pub bytes_max: usize,
}

impl Default for KvLimits {
    fn default() -> KvLimits {
        KvLimits { bytes_max: 4 << 20 }
    }
}

impl KvLimits {
    /// `Err` names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        match self.bytes_max {
            0x400..=0x80_0000 => Ok(()),
            _ => Err("kv bytes_max must be 1 KiB to 8 MiB".into()),
        }
    }
}

/// Namespace → key → value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvTable {
    #[serde(rename = "configTable", default)]
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl KvTable {
    /// One value.
    pub fn get(&self, namespace: &str, key: &str) -> Option<&str> {
        Some(self.namespaces.get(namespace)?.get(key)?.as_str())
    }

    /// All of a namespace.
    pub fn namespace(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(namespace)
    }

    /// Sets a value. `Err`, for the operator: a name is too long, or the table is full.
    pub fn put(&mut self, limits: &KvLimits, namespace: &str, key: &str, value: &str) -> Result<(), String> {
        for (what, name) in [("namespace", namespace), ("key", key)] {
            if !(1..=KEY_BYTES_MAX).contains(&name.len()) {
                return Err(format!("the {what} must have 1 to {KEY_BYTES_MAX} bytes"));
            }
        }
        let old = self.get(namespace, key).map_or(0, |old| entry_bytes(namespace, key, old));
        if self.bytes() - old + entry_bytes(namespace, key, value) > limits.bytes_max {
            return Err(format!("the settings would exceed {} bytes", limits.bytes_max));
        }
        let keys = self.namespaces.entry(namespace.to_owned()).or_default();
        keys.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// Removes a value. `false`: there was none.
    pub fn remove(&mut self, namespace: &str, key: &str) -> bool {
        let Some(keys) = self.namespaces.get_mut(namespace) else { return false };
        let was_there = keys.remove(key).is_some();
        if keys.is_empty() {
            self.namespaces.remove(namespace);
        }
        was_there
    }

    fn bytes(&self) -> usize {
        let namespaces = self.namespaces.iter();
        namespaces.flat_map(|(name, keys)| keys.iter().map(move |(k, v)| entry_bytes(name, k, v))).sum()
    }
}

fn entry_bytes(namespace: &str, key: &str, value: &str) -> usize {
    ENTRY_BYTES + namespace.len() + key.len() + value.len()
}

/// Where the table lies on disk.
#[derive(Clone, Debug)]
pub struct KvFile {
    path: PathBuf,
}

impl KvFile {
    /// Opens the file before the server starts, blocking.
    ///
    /// - No file: an empty table. Its directory is made.
    /// - No table in it: the file is renamed to `…broken`, never overwritten, and the second value
    ///   says so; the table is empty.
    /// - `Err`: the file cannot be read or renamed, or nothing can be written beside it. It names
    ///   the path.
    pub fn open(path: &Path) -> io::Result<(KvFile, KvTable, Option<String>)> {
        let named =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()));
        let file = KvFile { path: path.to_owned() };
        std::fs::create_dir_all(file.directory()).map_err(|error| named("making the directory of", error))?;
        // An operator learns now, not at the first change, that nothing can be kept here.
        let draft = file.draft_path();
        let probed = std::fs::write(&draft, b"").and_then(|()| std::fs::remove_file(&draft));
        probed.map_err(|error| named("writing beside", error))?;
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((file, KvTable::default(), None)),
            Err(error) => return Err(named("reading", error)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(table) => Ok((file, table, None)),
            Err(error) => {
                let aside = file.set_aside().map_err(|error| named("keeping aside the broken", error))?;
                let report = format!("{} is broken ({error}); it is kept as {}", path.display(), aside.display());
                Ok((file, KvTable::default(), Some(report)))
            }
        }
    }

    /// Replaces the file by this table, on disk when this returns: a draft is written and synced,
    /// renamed over the file, and the directory synced. One at a time; not to be dropped half-way.
    pub async fn save(&self, table: &KvTable) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(table).map_err(io::Error::other)?;
        let draft = self.draft_path();
        let file = tokio_uring::fs::File::create(&draft).await?;
        let (written, _) = file.write_all_at(json, 0).await;
        let written = match written {
            Ok(()) => file.sync_all().await,
            Err(error) => Err(error),
        };
        file.close().await?;
        written?;
        tokio_uring::fs::rename(&draft, &self.path).await?;
        let directory = tokio_uring::fs::File::open(self.directory()).await?;
        let synced = directory.sync_all().await;
        directory.close().await?;
        synced
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    fn draft_path(&self) -> PathBuf {
        self.beside(".draft")
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    fn set_aside(&self) -> io::Result<PathBuf> {
        for number in 0..ASIDE_MAX {
            let aside = self.beside(&if number == 0 { ".broken".into() } else { format!(".broken-{number}") });
            if !aside.try_exists()? {
                std::fs::rename(&self.path, &aside)?;
                std::fs::File::open(self.directory())?.sync_all()?;
                return Ok(aside);
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many broken files are kept already"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(file: &KvFile, table: &KvTable) {
        transport::run(file.save(table)).unwrap().unwrap();
    }

    #[test]
    fn what_is_put_is_there_until_removed() {
        let limits = KvLimits::default();
        let mut table = KvTable::default();
        table.put(&limits, "n", "k", "1").unwrap();
        table.put(&limits, "n", "k", "2").unwrap();
        table.put(&limits, "n", "l", "3").unwrap();
        assert_eq!(table.get("n", "k"), Some("2"));
        assert_eq!(table.namespace("n").unwrap().len(), 2);
        assert!(table.remove("n", "k") && table.remove("n", "l"));
        assert!(!table.remove("n", "l"));
        assert_eq!(table, KvTable::default(), "an empty namespace is none");
    }

    #[test]
    fn the_table_is_bounded() {
        let limits = KvLimits { bytes_max: 1024 };
        let mut table = KvTable::default();
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for (namespace, key) in [("", "k"), ("n", ""), (&long, "k"), ("n", &long)] {
            table.put(&limits, namespace, key, "v").unwrap_err();
        }
        table.put(&limits, "n", "k", &"v".repeat(1024 - ENTRY_BYTES - 2)).unwrap();
        table.put(&limits, "n", "l", "").unwrap_err();
        table.put(&limits, "n", "k", &"v".repeat(1024)).unwrap_err();
        table.put(&limits, "n", "k", "v").unwrap();
        table.put(&limits, "n", "l", "").unwrap();
        assert_eq!(table.bytes(), 2 * (ENTRY_BYTES + 2) + 1);
    }

    #[test]
    fn the_file_survives_and_has_the_stock_form() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/kvConfig.json");
        let (file, mut table, report) = KvFile::open(&path).unwrap();
        assert_eq!((table.clone(), report), (KvTable::default(), None));
        table.put(&KvLimits::default(), "ORDER_TOPIC_CONFIG", "T", "broker-a:4").unwrap();
        save(&file, &table);
        table.put(&KvLimits::default(), "n", "k", "später 🦀").unwrap();
        save(&file, &table);
        table.remove("n", "k");
        save(&file, &table);
        let (_, read, report) = KvFile::open(&path).unwrap();
        assert_eq!((read, report), (table, None));
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(value, serde_json::json!({"configTable": {"ORDER_TOPIC_CONFIG": {"T": "broker-a:4"}}}));
    }

    #[test]
    fn a_broken_file_is_kept_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.json");
        for (number, content) in ["", "{", "{\"configTable\":7}", "[1]"].into_iter().enumerate() {
            std::fs::write(&path, content).unwrap();
            let (file, table, report) = KvFile::open(&path).unwrap();
            assert_eq!(table, KvTable::default());
            let report = report.expect("a report");
            let aside = report.rsplit(' ').next().unwrap();
            assert_eq!(std::fs::read_to_string(aside).unwrap(), content, "file {number}");
            save(&file, &table);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 5, "four aside and ours");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let occupied = directory.path().join("file");
        std::fs::write(&occupied, b"").unwrap();
        let error = KvFile::open(&occupied.join("kv.json")).unwrap_err();
        assert!(error.to_string().contains("kv.json"), "{error}");
    }
}
