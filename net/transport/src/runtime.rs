//! The thread's ring and the loop that drives it.

use std::future::Future;
use std::io;

/// Submission slots of the ring. The driver flushes when they are full, so this bounds a batch,
/// not the operations in flight.
const SUBMISSIONS: u32 = 256;
/// Completions that the kernel can hand over in one turn; more wait in the kernel. 4,096, so that
/// a burst from thousands of connections stays in the ring.
const COMPLETIONS: u32 = 4096;

/// Runs `future` on this thread with a tokio-uring runtime of its own, to its end.
///
/// Tasks that it leaves behind are dropped with their sockets. Fails if the kernel gives no ring;
/// the error says which setting to change.
pub fn run<F: Future>(future: F) -> io::Result<F::Output> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_cqsize(COMPLETIONS);
    let mut builder = tokio_uring::builder();
    builder.entries(SUBMISSIONS).uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&builder).map_err(explain)?;
    Ok(runtime.block_on(future))
}

/// Adds to a refusal what an operator can do about it.
fn explain(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "io_uring is forbidden here: set the sysctl kernel.io_uring_disabled=0, and allow the \
             io_uring system calls in the container's seccomp profile"
        }
        io::ErrorKind::Unsupported => "this kernel has no io_uring: RingMQ needs Linux 6.1 or newer",
        io::ErrorKind::OutOfMemory => "no memory for the ring: raise RLIMIT_MEMLOCK (ulimit -l)",
        _ => "the kernel gives no io_uring",
    };
    io::Error::new(error.kind(), format!("{advice} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_runs_to_its_end() {
        let answer = run(async {
            tokio_uring::no_op().await?;
            Ok::<_, io::Error>(7)
        });
        assert_eq!(answer.unwrap().unwrap(), 7);
    }

    #[test]
    fn a_refusal_names_the_setting() {
        let text = |code| explain(io::Error::from_raw_os_error(code)).to_string();
        assert!(text(1).contains("kernel.io_uring_disabled"), "EPERM");
        assert!(text(12).contains("RLIMIT_MEMLOCK"), "ENOMEM");
        assert!(text(38).contains("6.1"), "ENOSYS");
    }
}
