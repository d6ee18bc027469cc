//! The data directory: whose it is, and what it was made for.
//!
//! ```text
//! DIR/LOCK             locked (flock) by the process that uses it; its pid is inside
//! DIR/store.toml       format and number of partitions: fixed when the directory is made
//! DIR/partition-00000/ one log each
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::ring::Disk;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The format of what lies in the directory. A directory of another one is refused.
pub const FORMAT: u32 = 1;
/// How long to wait for a lock or a port of a process that may be dead. 3 s: its ring lets go of them some tens
/// of milliseconds after `kill -9`, on a busy machine later.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait for the lock of one that is dead for certain. 30 s: the kernel holds it until the last write has come
/// back, from a disk that may be slow or stand still, and nobody else can take the directory meanwhile.
const PATIENCE_WITH_DEAD: Duration = Duration::from_secs(30);
/// How often to look again: the kernel has no event for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// `store.toml` is at most this long; ours has 40 bytes.
const STORE_BYTES_MAX: u64 = 4096;

/// A data directory that this process alone uses, as long as the value lives.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    partitions: u16,
    is_kept: bool,
    lock: Arc<File>,
}

/// What `store.toml` says.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Store {
    format: u32,
    partitions: u16,
}

impl Home {
    /// Locks the directory, and makes it if it is missing.
    ///
    /// - `partitions`: how many a new directory gets, once [`keep`](Home::keep) is called. One that
    ///   exists keeps its own number.
    /// - `patience`: how long to wait for a lock that is held, usually [`PATIENCE`]. That of a dead process is
    ///   waited for longer, 30 s.
    /// - `Err` says what is wrong with which path, and names the key to change.
    pub fn open(path: &Path, partitions: u16, patience: Duration) -> Result<Home, String> {
        assert!(partitions > 0, "a store has a partition");
        let fail = |what: &str, error: io::Error| {
            let why = match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => "its file system is read-only".to_string(),
                io::ErrorKind::PermissionDenied => "this user may not write there".to_string(),
                _ => error.to_string(),
            };
            format!("data directory {} (log.dir): {what}: {why}", path.display())
        };
        fs::create_dir_all(path).map_err(|error| fail("cannot be made", error))?;
        let lock = lock(&path.join("LOCK"), patience).map_err(|error| match error {
            LockError::Held(holder) => format!(
                "data directory {} (log.dir) is in use by {}",
                path.display(),
                holder.map_or("another process".into(), |holder| format!("process {}", holder.pid)),
            ),
            LockError::Io(error) => fail("cannot be locked", error),
        })?;
        let found = read_store(path).map_err(|error| fail("store.toml", error))?;
        let is_kept = found.is_some();
        let store = found.unwrap_or(Store { format: FORMAT, partitions });
        if store.format != FORMAT {
            let text = format!("store.toml: format {} is not {FORMAT}, which this version reads", store.format);
            return Err(format!("data directory {} (log.dir): {text}", path.display()));
        }
        Ok(Home { path: path.to_path_buf(), partitions: store.partitions, is_kept, lock: Arc::new(lock) })
    }

    /// Fixes the number of partitions for ever. Before the first log is made, and not before everything
    /// else is known to work: a start that fails for a wrong setting leaves nothing behind.
    pub fn keep(&mut self) -> Result<(), String> {
        if !self.is_kept {
            let store = Store { format: FORMAT, partitions: self.partitions };
            write_store(&self.path, &store)
                .map_err(|error| format!("data directory {} (log.dir): store.toml: {error}", self.path.display()))?;
            self.is_kept = true;
        }
        Ok(())
    }

    /// The file whose lock says that the directory is in use. Rings keep it open while the kernel writes for them.
    pub fn lock(&self) -> Arc<File> {
        Arc::clone(&self.lock)
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// Where a partition's log lies.
    pub fn partition_dir(&self, partition: u16) -> PathBuf {
        self.path.join(partition_name(partition))
    }

    /// Whether its file system can write past the page cache (`O_DIRECT`). Where it cannot, the logs go
    /// through it with `fdatasync`, and somebody should know.
    pub fn is_direct(&self) -> bool {
        let how = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(self.path.join("LOCK"));
        !how.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    }

    /// Its file system's space.
    pub fn disk(&self) -> io::Result<Disk> {
        Disk::of(&self.path)
    }
}

/// What can be known of a data directory without using it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// How many partitions it has; `None`: it is new.
    pub partitions: Option<u16>,
    /// The process that uses it, as far as this process may see that.
    pub user: Option<u32>,
}

/// Looks at a data directory, and takes no lock. `Err` says what is wrong with `store.toml`.
pub fn look(path: &Path) -> Result<Look, String> {
    let store = read_store(path).map_err(|error| error.to_string())?;
    if let Some(store) = store.as_ref().filter(|store| store.format != FORMAT) {
        return Err(format!("format {} is not {FORMAT}, which this version reads", store.format));
    }
    Ok(Look { partitions: store.map(|store| store.partitions), user: user(&path.join("LOCK")) })
}

/// Who holds the lock, by the kernel's table: `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`. Nobody, if that process
/// was killed and the kernel still writes for it.
fn user(lock: &Path) -> Option<u32> {
    let inode = fs::metadata(lock).ok()?.ino();
    let table = fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let (pid, file): (u32, _) = (words.next()?.parse().ok()?, words.next()?);
        let is_there = || Path::new("/proc").join(pid.to_string()).exists();
        (file.rsplit(':').next()?.parse() == Ok(inode) && is_there()).then_some(pid)
    })
}

/// Tries again while what is wanted is held by somebody, as long as `patience` says of the error; at least once.
/// `None`: nobody holds it, the error is another one.
pub fn patiently<T, E>(
    patience: impl Fn(&E) -> Option<Duration>,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(error) if patience(&error).is_some_and(|patience| began.elapsed() < patience) => {
                std::thread::sleep(LOOK_INTERVAL);
            }
            ended => return ended,
        }
    }
}

/// The name of a partition's directory.
pub fn partition_name(partition: u16) -> String {
    format!("partition-{partition:05}")
}

enum LockError {
    /// By this process, if it said so.
    Held(Option<Holder>),
    Io(io::Error),
}

fn lock(path: &Path, patience: Duration) -> Result<File, LockError> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(LockError::Io)?;
    let attempt = || match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(LockError::Held(holder(&file))),
        Err(error) => Err(LockError::Io(error.into())),
    };
    let with = |error: &LockError| match error {
        LockError::Held(Some(holder)) if holder.is_dead() => Some(PATIENCE_WITH_DEAD),
        LockError::Held(_) => Some(patience),
        LockError::Io(_) => None,
    };
    patiently(with, attempt)?;
    // For the message of the next one that comes, and how long that one waits; nothing else hangs on it.
    let mut note = || {
        file.set_len(0)?;
        file.rewind()?;
        let pid = std::process::id();
        match state_of(pid) {
            Ok(Some((_, started))) => writeln!(file, "{pid} {started}"),
            _ => writeln!(file, "{pid}"),
        }
    };
    note().map_err(LockError::Io)?;
    Ok(file)
}

/// Who holds a lock, as it said itself: its pid, and when it was started, which tells it from one that got its pid.
#[derive(Clone, Copy)]
struct Holder {
    pid: u32,
    started: Option<u64>,
}

impl Holder {
    /// Whether that process has ended: it is gone, another one has its pid (as pid 1 of a container that was started
    /// again), or it is a zombie, which nobody has waited for yet.
    fn is_dead(self) -> bool {
        match state_of(self.pid) {
            Ok(Some((state, started))) => {
                matches!(state, 'Z' | 'X') || self.started.is_some_and(|known| known != started)
            }
            Ok(None) => false,
            Err(error) => error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self").exists(),
        }
    }
}

/// Who wrote itself into the lock's file.
fn holder(mut file: &File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    let mut words = text.split_ascii_whitespace();
    Some(Holder { pid: words.next()?.parse().ok()?, started: words.next().and_then(|word| word.parse().ok()) })
}

/// A process's state and when it was started, in ticks since the host was: fields 3 and 22 of
/// `1234 (name) S 1 …` (proc_pid_stat(5)). `None`: it says something else.
fn state_of(pid: u32) -> io::Result<Option<(char, u64)>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let Some((_, rest)) = stat.rsplit_once(')') else { return Ok(None) };
    let mut words = rest.split_ascii_whitespace();
    let state = words.next().and_then(|word| word.chars().next());
    let started = words.nth(18).and_then(|word| word.parse().ok());
    Ok(state.zip(started))
}

fn read_store(dir: &Path) -> io::Result<Option<Store>> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut text = String::new();
    match File::open(dir.join("store.toml")) {
        Ok(file) => file.take(STORE_BYTES_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // It is durable before any log is made: a log without it means that somebody took it away.
            if dir.join(partition_name(0)).exists() {
                return Err(invalid("it is missing, but there are logs".into()));
            }
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let store: Store = toml::from_str(&text).map_err(|error| invalid(error.message().to_string()))?;
    if store.partitions == 0 || store.partitions > 1 << 15 {
        return Err(invalid(format!("partitions = {} must be 1 to 32768", store.partitions)));
    }
    Ok(Some(store))
}

/// All of it or nothing, also across a power cut.
fn write_store(dir: &Path, store: &Store) -> io::Result<()> {
    let text = toml::to_string(store).expect("two numbers are TOML");
    let temporary = dir.join("store.toml.new");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join("store.toml"))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    const NOW: Duration = Duration::ZERO;

    /// Lets one test at a time go on: a process that another one starts has a copy of each open file, locks too, until
    /// it runs its own program.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn one_at_a_time_and_the_other_is_named() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let home = Home::open(&path, 2, NOW).unwrap();
        // Asking for O_DIRECT opens the lock's file a second time: closing that must not let go of it.
        home.is_direct();
        let error = Home::open(&path, 2, NOW).unwrap_err();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        assert!(error.contains("log.dir"), "{error}");
        assert_eq!(look(&path), Ok(Look { partitions: None, user: Some(std::process::id()) }));
        drop(home);
        assert_eq!(look(&path), Ok(Look { partitions: None, user: None }));
        Home::open(&path, 2, NOW).unwrap();
    }

    #[test]
    fn a_lock_that_is_let_go_late_is_waited_for() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), 1, NOW).unwrap();
        let (about_to_open, wait) = std::sync::mpsc::channel();
        let path = dir.path().to_path_buf();
        let opener = std::thread::spawn(move || {
            about_to_open.send(()).unwrap();
            Home::open(&path, 1, Duration::from_secs(60)).map(|home| home.partitions())
        });
        wait.recv().unwrap();
        drop(home);
        assert_eq!(opener.join().unwrap(), Ok(1));
    }

    #[test]
    fn the_lock_of_a_dead_process_is_waited_for_longer() {
        let _alone = alone();
        let is_dead = |pid: u32| Holder { pid, started: None }.is_dead();
        let (pid, started) = (std::process::id(), state_of(std::process::id()).unwrap().unwrap().1);
        assert!(!is_dead(pid) && !Holder { pid, started: Some(started) }.is_dead());
        assert!(Holder { pid, started: Some(started + 1) }.is_dead(), "its pid is another one's");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let give_up = Instant::now() + Duration::from_secs(60);
        while !is_dead(child.id()) {
            assert!(Instant::now() < give_up, "it ends, and nobody has waited for it");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(is_dead(child.id()));
        // As if the kernel still wrote for it.
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), 1, NOW).unwrap();
        fs::write(dir.path().join("LOCK"), format!("{}\n", child.id())).unwrap();
        let path = dir.path().to_path_buf();
        let opener = std::thread::spawn(move || Home::open(&path, 1, NOW).map(|home| home.partitions()));
        // There is no event for who waits: this is long enough to give up.
        std::thread::sleep(LOOK_INTERVAL * 5);
        assert!(!opener.is_finished(), "it waits");
        drop(home);
        assert_eq!(opener.join().unwrap(), Ok(1));
    }

    #[test]
    fn the_number_of_partitions_stays() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path(), 2, NOW).unwrap());
        Home::open(dir.path(), 3, NOW).unwrap().keep().unwrap();
        let mut home = Home::open(dir.path(), 8, NOW).unwrap();
        home.keep().unwrap();
        assert_eq!(home.partitions(), 3, "what was only opened with fixed nothing");
        assert!(home.partition_dir(2).ends_with("partition-00002"));
        let disk = home.disk().unwrap();
        assert!(disk.available <= disk.total && disk.total > 0);
    }

    #[test]
    fn a_broken_store_is_refused() {
        let table = [
            ("format = 2\npartitions = 1\n", "format 2 is not 1"),
            ("format = 1\npartitions = 0\n", "must be 1 to 32768"),
            ("format = 1\npartitions = 40000\n", "must be 1 to 32768"),
            ("format = 1\n", "partitions"),
            ("format = 1\npartitions = 1\nmore = 1", "more"),
            ("\0\0", "store.toml"),
        ];
        for (text, words) in table {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("store.toml"), text).unwrap();
            let error = Home::open(dir.path(), 1, NOW).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
            assert!(error.contains(&look(dir.path()).unwrap_err()), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(partition_name(0))).unwrap();
        let error = Home::open(dir.path(), 1, NOW).unwrap_err();
        assert!(error.contains("it is missing"), "{error}");
    }

    #[test]
    fn a_path_that_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let error = Home::open(&path, 1, NOW).unwrap_err();
        assert!(error.contains("file") && error.contains("cannot be made"), "{error}");
    }
}
