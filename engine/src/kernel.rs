//! What the ring asks of its host in words rather than through the ring: is the kernel new enough,
//! which setting stands in the way, what lies in a directory.

use std::fs;
use std::io;
use std::path::Path;

/// The oldest kernel that has everything: `DEFER_TASKRUN` came with 6.1.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// What the kernel calls itself; empty if it does not say.
pub(crate) fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Refuses kernels that lack what the ring needs, by the kernel's own word.
pub(crate) fn check(release: &str) -> io::Result<()> {
    match version(release) {
        Some(version) if version < KERNEL_MIN => {
            let (major, minor) = KERNEL_MIN;
            let text = format!("Linux {}: io_uring as we use it needs {major}.{minor} or newer", release.trim());
            Err(io::Error::new(io::ErrorKind::Unsupported, text))
        }
        // A kernel that does not say is asked by doing.
        _ => Ok(()),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Says which setting stands in the way.
pub(crate) fn explain(error: io::Error) -> io::Error {
    let setting = "/proc/sys/kernel/io_uring_disabled";
    let disabled = fs::read_to_string(setting).unwrap_or_default();
    let reason = match (error.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM | libc::EACCES), "2") => format!("{setting} is 2: nobody may use io_uring; set it to 0"),
        (Some(libc::EPERM | libc::EACCES), "1") => {
            format!("{setting} is 1: set it to 0, or run in the group kernel.io_uring_group or with CAP_SYS_ADMIN")
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring is forbidden, most likely by a seccomp filter: a container profile must allow io_uring_setup, \
             io_uring_enter and io_uring_register"
                .to_string()
        }
        (Some(libc::ENOSYS), _) => {
            "this kernel has no io_uring (CONFIG_IO_URING), or a seccomp filter hides it".to_string()
        }
        (Some(libc::ENOMEM), _) => {
            "locked memory is short: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=)".to_string()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "no file descriptor is left: raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)".to_string()
        }
        _ => "io_uring".to_string(),
    };
    io::Error::new(error.kind(), format!("{reason} ({error})"))
}

/// Regular files only; a name that is not UTF-8 is none of ours.
pub(crate) fn list(path: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // Removed while we look.
            Err(error) => return Err(error),
        };
        if let Ok(name) = entry.file_name().into_string()
            && metadata.is_file()
        {
            names.push((name, metadata.len()));
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_refused_by_version_only() {
        let table = [
            ("6.1.0-18-amd64\n", true),
            ("5.15.0-105-generic", false),
            ("6.0.9", false),
            ("6.18.44", true),
            ("6.10-rc1", true),
            ("10.0", true),
            ("", true),
            ("linux", true),
        ];
        for (release, fine) in table {
            let checked = check(release);
            assert_eq!(checked.is_ok(), fine, "{release}: {checked:?}");
        }
        assert!(check("5.4.0").unwrap_err().to_string().contains("6.1 or newer"));
    }
}
