//! What the host gives: CPUs, open files, ports, an address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::sysinfo;
use socket2::SockRef;

use crate::home::{PATIENCE, patiently};

/// Connections that the kernel holds until we accept them. 4,096, the kernel's own bound.
const BACKLOG: i32 = 4096;
/// More cores than this are used only when told so.
const CORES_BY_DEFAULT_MAX: usize = 16;
/// With port 0: how many ports to try until one is found whose port - 2 is free too.
const PORT_TRIES: usize = 64;
/// The kernel's list of its own addresses; longer than this it is not read to its end.
const FIB_BYTES_MAX: usize = 1 << 20;

/// Raises the soft limit of open files to the hard one. Returns what it is then.
pub fn raise_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let now = if raised { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}

/// The host's physical memory, in bytes.
pub fn memory_bytes() -> u64 {
    let info = sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// The CPUs that this process may run on.
pub fn allowed_cpus() -> Result<Vec<usize>, String> {
    affinity::get_thread_affinity().map_err(|error| format!("asking for the CPUs of this process: {error}"))
}

/// Chooses one CPU for each core: the length of the answer is the number of cores.
///
/// - `cores`: `engine.cores`, 0 for our choice. `cpus`: `engine.cpus`, empty for our choice.
/// - With more cores than CPUs they share them, in turn.
/// - `Err` names a CPU that the process may not use.
pub fn place_cores(cores: usize, cpus: &[usize], allowed: &[usize]) -> Result<Vec<usize>, String> {
    if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        let range = allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        return Err(format!("engine.cpus: this process may not use CPU {cpu}; it may use {range}"));
    }
    assert!(!allowed.is_empty(), "a running process has a CPU");
    let count = match (cores, cpus.len()) {
        (0, 0) => (allowed.len() / 2).clamp(1, CORES_BY_DEFAULT_MAX),
        (0, named) => named,
        (cores, _) => cores,
    };
    let pool = if cpus.is_empty() { allowed } else { cpus };
    Ok(pool.iter().copied().cycle().take(count).collect())
}

/// The address that peers reach this host by: the one that packets to elsewhere leave from, or else
/// the first of the host's own that is not loopback.
pub fn first_ipv4() -> Option<Ipv4Addr> {
    outgoing_ipv4().or_else(|| {
        let text = std::fs::read("/proc/net/fib_trie").ok()?;
        local_ipv4(&String::from_utf8_lossy(&text[..text.len().min(FIB_BYTES_MAX)]))
    })
}

/// Connecting a datagram socket sends nothing; it only chooses a route. 192.0.2.1 is nobody's (RFC 5737).
fn outgoing_ipv4() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if is_reachable(ip) => Some(ip),
        _ => None,
    }
}

/// In `/proc/net/fib_trie` a line with an address is followed by one with `/32 host LOCAL` if it is ours.
fn local_ipv4(fib: &str) -> Option<Ipv4Addr> {
    let mut last = None;
    for line in fib.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(ip) = last
            && is_reachable(ip)
        {
            return Some(ip);
        }
    }
    None
}

fn is_reachable(ip: Ipv4Addr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified()
}

/// The broker's doors.
#[derive(Debug)]
pub struct Doors {
    /// Where clients come.
    pub main: TcpListener,
    /// The port below: `None` if it is switched off or was not free.
    pub fast: Option<TcpListener>,
    /// The port of `main`.
    pub port: u16,
    /// Why there is no fast port although one was wanted.
    pub note: Option<String>,
}

impl Doors {
    /// Binds `port`, and `port - 2` if `fast` is set; that one may fail. Port 0: one is chosen whose
    /// port - 2 is free too. Without `SO_REUSEPORT`: with it a second process would bind the same
    /// port unseen. `Err` names address and key.
    pub fn open(address: IpAddr, port: u16, fast: bool) -> Result<Doors, String> {
        let fail = |error: io::Error| {
            let address = SocketAddr::new(address, port);
            match error.kind() {
                io::ErrorKind::AddrInUse => format!("{address} (broker.port) is in use by another process"),
                _ => format!("listening on {address} (broker.listen, broker.port): {error}"),
            }
        };
        let mut tries = if port == 0 && fast { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            let main = listen(SocketAddr::new(address, port), PATIENCE).map_err(fail)?;
            let bound = main.local_addr().map_err(fail)?.port();
            if !fast {
                return Ok(Doors { main, fast: None, port: bound, note: None });
            }
            // A port that somebody named may be let go of late; one of our choice is not worth waiting for.
            let patience = if port == 0 { Duration::ZERO } else { FAST_PATIENCE };
            let below = match bound.checked_sub(2).filter(|port| *port > 0) {
                Some(port) => listen(SocketAddr::new(address, port), patience),
                None => Err(io::ErrorKind::AddrNotAvailable.into()),
            };
            match below {
                Ok(below) => return Ok(Doors { main, fast: Some(below), port: bound, note: None }),
                Err(_) if tries > 0 => {}
                Err(error) => {
                    let note = format!("the fast port {} is not served: {error}", i32::from(bound) - 2);
                    return Ok(Doors { main, fast: None, port: bound, note: Some(note) });
                }
            }
        }
    }
}

/// The fast port is a convenience: a restart after `kill -9` gets it back, a start beside a stranger
/// is not held up for long.
const FAST_PATIENCE: Duration = Duration::from_millis(500);

fn listen(address: SocketAddr, patience: Duration) -> io::Result<TcpListener> {
    let patience = |error: &io::Error| (error.kind() == io::ErrorKind::AddrInUse).then_some(patience);
    let listener = patiently(patience, || TcpListener::bind(address))?;
    // The standard library's backlog is for small servers; listening again replaces it.
    SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn cores_find_their_cpus() {
        type Row = (usize, &'static [usize], &'static [usize], Result<&'static [usize], &'static str>);
        let table: [Row; 9] = [
            (0, &[], &[0], Ok(&[0])),
            (0, &[], &[0, 1], Ok(&[0])),
            (0, &[], &[2, 3, 5, 7], Ok(&[2, 3])),
            (2, &[], &[0, 1], Ok(&[0, 1])),
            (3, &[], &[0, 1], Ok(&[0, 1, 0])),
            (0, &[1, 0], &[0, 1], Ok(&[1, 0])),
            (1, &[1, 0], &[0, 1], Ok(&[1])),
            (1, &[2], &[0, 1], Err("CPU 2; it may use 0,1")),
            (0, &[0, 3], &[0, 1], Err("engine.cpus")),
        ];
        for (cores, cpus, allowed, wanted) in table {
            let placed = place_cores(cores, cpus, allowed);
            match wanted {
                Ok(wanted) => assert_eq!(placed.as_deref(), Ok(wanted), "{cores} {cpus:?} {allowed:?}"),
                Err(words) => assert!(placed.unwrap_err().contains(words), "{cores} {cpus:?} {allowed:?}"),
            }
        }
        let many: Vec<usize> = (0..128).collect();
        assert_eq!(place_cores(0, &[], &many).unwrap().len(), CORES_BY_DEFAULT_MAX);
        assert!(!allowed_cpus().unwrap().is_empty());
    }

    #[test]
    fn the_hosts_own_address_is_found() {
        let fib = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.8\n        /32 host LOCAL\n";
        assert_eq!(local_ipv4(fib), Some(Ipv4Addr::new(10, 0, 0, 7)));
        assert_eq!(local_ipv4("|-- nonsense\n /32 host LOCAL"), None);
        assert!(first_ipv4().is_none_or(|ip| !ip.is_loopback()));
    }

    #[test]
    fn ports() {
        let doors = Doors::open(LOOPBACK, 0, true).unwrap();
        let fast = doors.fast.as_ref().expect("a port with a free one below is found");
        assert_eq!(fast.local_addr().unwrap().port(), doors.port - 2);
        let error = Doors::open(LOOPBACK, doors.port, true).unwrap_err();
        assert!(error.contains("broker.port") && error.contains("in use"), "{error}");
        let quiet = Doors::open(LOOPBACK, 0, false).unwrap();
        assert!(quiet.fast.is_none() && quiet.note.is_none());

        let Doors { main, fast, port, .. } = doors;
        drop(main);
        let beside = Doors::open(LOOPBACK, port, true).unwrap();
        assert!(beside.note.as_ref().is_some_and(|note| note.contains(&(port - 2).to_string())), "{beside:?}");
        drop(fast);
    }

    #[test]
    fn a_port_that_is_let_go_late_is_waited_for() {
        let doors = Doors::open(LOOPBACK, 0, false).unwrap();
        let port = doors.port;
        let (about_to_open, wait) = std::sync::mpsc::channel();
        let opener = std::thread::spawn(move || {
            about_to_open.send(()).unwrap();
            Doors::open(LOOPBACK, port, false).map(|doors| doors.port)
        });
        wait.recv().unwrap();
        drop(doors);
        assert_eq!(opener.join().unwrap(), Ok(port));
    }

    #[test]
    fn open_files_are_raised() {
        assert!(raise_files() >= 256);
        assert_eq!(getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum);
    }
}
