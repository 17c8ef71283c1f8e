//! Server for the status reports of the ranks. A closed connection means that a process has exited,
//! and the order of these events shows which process was the first; an open connection without
//! reports means that a process was stopped.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use crate::rank::status::Status;

/// Longest line that is accepted, in bytes.
const LONGEST_LINE: usize = 64 << 10;

/// The latest report of a rank.
#[derive(Debug, Clone)]
pub struct LastStatus {
    /// The report.
    pub status: Status,
    /// When it was received.
    pub received: Instant,
    /// When the connection closed.
    pub closed: Option<Instant>,
}

/// Latest reports by rank.
pub type Ranks = BTreeMap<usize, LastStatus>;

struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
    authenticated: bool,
    rank: Option<usize>,
}

/// The server.
pub struct Monitor {
    listener: TcpListener,
    token: String,
    connections: Vec<Connection>,
    /// All ranks that have ever sent a report.
    pub ranks: Ranks,
}

impl Monitor {
    /// Listens on a free port; with `local` on the loopback interface only.
    ///
    /// # Errors
    /// No free port, or no random numbers for the token.
    pub fn open(local: bool) -> io::Result<Self> {
        let address = if local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let listener = TcpListener::bind((address, 0))?;
        listener.set_nonblocking(true)?;
        let mut random = [0u8; 16];
        getrandom::fill(&mut random)?;
        let token = format!("{:032x}", u128::from_le_bytes(random));
        Ok(Self { listener, token, connections: vec![], ranks: Ranks::new() })
    }

    /// The value of [`VARIABLE`](crate::rank::status::VARIABLE) for ranks that can reach this
    /// machine by one of `hosts`.
    ///
    /// # Errors
    /// The system does not return the port.
    pub fn address(&self, hosts: &[String]) -> io::Result<String> {
        let port = self.listener.local_addr()?.port();
        let hosts: Vec<String> = hosts.iter().map(|h| format!("{h}:{port}")).collect();
        Ok(format!("{}@{}", self.token, hosts.join(",")))
    }

    /// Accepts connections and reads reports that have arrived. Does not block.
    pub fn poll(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection {
                    stream,
                    pending: vec![],
                    authenticated: false,
                    rank: None,
                });
            }
        }
        let (token, ranks) = (&self.token, &mut self.ranks);
        self.connections.retain_mut(|connection| connection.poll(token, ranks));
    }
}

impl Connection {
    /// Reads reports into `ranks`; false if the connection is to be dropped.
    fn poll(&mut self, token: &str, ranks: &mut Ranks) -> bool {
        let open = self.read();
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]);
            if !self.authenticated {
                if line != token {
                    return false;
                }
                self.authenticated = true;
            } else if let Ok(status) = serde_json::from_str::<Status>(&line) {
                self.rank = Some(status.rank);
                let received = Instant::now();
                ranks.insert(status.rank, LastStatus { status, received, closed: None });
            }
        }
        if !open && let Some(last) = self.rank.and_then(|r| ranks.get_mut(&r)) {
            last.closed = Some(Instant::now());
        }
        open && self.pending.len() < LONGEST_LINE
    }

    /// Reads the bytes that have arrived; false if the connection was closed.
    fn read(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rank::status::Reporter;

    fn status(rank: usize, call: u64) -> Status {
        Status {
            rank,
            host: "n1".into(),
            pid: 7,
            step: 3,
            call,
            tag: "gradients 2".into(),
            waiting_s: Some(1.5),
            end: None,
        }
    }

    fn poll_until(monitor: &mut Monitor, done: impl Fn(&Ranks) -> bool) {
        for _ in 0..500 {
            monitor.poll();
            if done(&monitor.ranks) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("timed out after 5 s: {:?}", monitor.ranks);
    }

    #[test]
    fn latest_report_and_closed_connection_are_recorded() {
        let mut monitor = Monitor::open(true).unwrap();
        let address = monitor.address(&["127.0.0.1".into()]).unwrap();
        let mut a = Reporter::connect(&address).unwrap();
        let mut b = Reporter::connect(&address).unwrap();
        a.send(&status(0, 5)).unwrap();
        a.send(&status(0, 6)).unwrap();
        b.send(&status(1, 4)).unwrap();
        poll_until(&mut monitor, |r| r.len() == 2 && r[&0].status.call == 6);
        assert_eq!(monitor.ranks[&1].status, status(1, 4));
        drop(b);
        poll_until(&mut monitor, |r| r[&1].closed.is_some());
        assert!(monitor.ranks[&0].closed.is_none());
    }

    #[test]
    fn connections_without_the_token_are_dropped() {
        let mut monitor = Monitor::open(true).unwrap();
        let address = monitor.address(&["127.0.0.1".into()]).unwrap();
        let (token, host) = address.split_once('@').unwrap();
        assert_eq!(token.len(), 32);
        let mut guess = Reporter::connect(&format!("guess@{host}")).unwrap();
        let _ = guess.send(&status(0, 1));
        let mut rank = Reporter::connect(&address).unwrap();
        rank.send(&status(1, 1)).unwrap();
        poll_until(&mut monitor, |r| !r.is_empty());
        assert!(!monitor.ranks.contains_key(&0));
    }
}
