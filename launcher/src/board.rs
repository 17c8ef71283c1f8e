//! The supervisor's board: each rank tells it over TCP, twice a second, which collective it is in. A connection that
//! closes is a process that ended, in the order in which they ended; a silent one is a process that stopped.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use dw_base::text::shown;
use serde::{Deserialize, Serialize};

/// Variable with the board's address: `TOKEN@HOST:PORT,HOST:PORT`, hosts to be tried in this order.
pub const VARIABLE: &str = "DW_BOARD";
/// What connecting to one address may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest line of a rank.
const LINE: usize = 64 << 10;

/// What a rank tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Rank.
    pub rank: usize,
    /// Its host.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Step it works on.
    pub step: u64,
    /// Number of its current or last collective.
    pub call: u64,
    /// Purpose of that.
    pub tag: String,
    /// For how long it has been in it; `None`: it came out.
    pub waiting_s: Option<f64>,
    /// Exit code and reason, as its last words.
    pub end: Option<(i32, String)>,
}

/// A rank's end of the line.
#[derive(Debug)]
pub struct Client(TcpStream);

impl Client {
    /// Connects where a supervisor has set the variable.
    pub fn from_env() -> Option<Self> {
        let value = std::env::var(VARIABLE).ok()?;
        let client = Self::connect(&value);
        if client.is_none() {
            let address = shown(value.split('@').next_back()?);
            tracing::warn!(
                "cannot reach the supervisor's board at {address}: it will know less when a rank is lost"
            );
        }
        client
    }

    fn connect(value: &str) -> Option<Self> {
        let (token, hosts) = value.split_once('@')?;
        for host in hosts.split(',') {
            for address in host.to_socket_addrs().into_iter().flatten() {
                if let Ok(mut stream) = TcpStream::connect_timeout(&address, CONNECT)
                    && stream.set_write_timeout(Some(CONNECT)).is_ok()
                    && writeln!(stream, "{token}").is_ok()
                {
                    return Some(Self(stream));
                }
            }
        }
        None
    }

    /// Sends a state.
    pub fn tell(&mut self, state: &State) -> std::io::Result<()> {
        let mut line = serde_json::to_string(state)?;
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }
}

/// What the board knows of a rank.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its last words.
    pub state: State,
    /// When they came.
    pub at: Instant,
    /// When its connection closed.
    pub closed: Option<Instant>,
}

struct Line {
    stream: TcpStream,
    pending: Vec<u8>,
    trusted: bool,
    rank: Option<usize>,
}

/// The supervisor's end.
pub struct Board {
    listener: TcpListener,
    token: String,
    lines: Vec<Line>,
    /// Every rank that ever connected.
    pub ranks: BTreeMap<usize, Seen>,
}

impl Board {
    /// Listens on a free port. `local` keeps it on this machine.
    ///
    /// # Errors
    /// No port.
    pub fn open(local: bool) -> std::io::Result<Self> {
        let listener = TcpListener::bind((
            if local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED },
            0,
        ))?;
        listener.set_nonblocking(true)?;
        let mut random = [0u8; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token = format!("{:032x}", u128::from_le_bytes(random));
        Ok(Self { listener, token, lines: vec![], ranks: BTreeMap::new() })
    }

    /// Value of [`VARIABLE`] for ranks that know this machine by one of `hosts`.
    ///
    /// # Errors
    /// The system does not tell the port.
    pub fn variable(&self, hosts: &[String]) -> std::io::Result<String> {
        let port = self.listener.local_addr()?.port();
        let places: Vec<String> = hosts.iter().map(|h| format!("{h}:{port}")).collect();
        Ok(format!("{}@{}", self.token, places.join(",")))
    }

    /// Takes in what has come. Returns at once.
    pub fn look(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.lines.push(Line { stream, pending: vec![], trusted: false, rank: None });
            }
        }
        let (token, ranks) = (&self.token, &mut self.ranks);
        self.lines.retain_mut(|line| {
            let open = line.read();
            while let Some(end) = line.pending.iter().position(|&b| b == b'\n') {
                let text: Vec<u8> = line.pending.drain(..=end).collect();
                let text = String::from_utf8_lossy(&text[..end]).into_owned();
                if !line.trusted {
                    if text != *token {
                        return false;
                    }
                    line.trusted = true;
                } else if let Ok(state) = serde_json::from_str::<State>(&text) {
                    line.rank = Some(state.rank);
                    ranks.insert(state.rank, Seen { state, at: Instant::now(), closed: None });
                }
            }
            if !open && let Some(seen) = line.rank.and_then(|r| ranks.get_mut(&r)) {
                seen.closed = Some(Instant::now());
            }
            open && line.pending.len() < LINE
        });
    }
}

impl Line {
    /// Reads what is there; false when the other end is gone.
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
    use super::*;

    fn state(rank: usize, call: u64) -> State {
        State {
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

    fn until(board: &mut Board, done: impl Fn(&Board) -> bool) {
        for _ in 0..500 {
            board.look();
            if done(board) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("not within 5 s: {:?}", board.ranks);
    }

    #[test]
    fn knows_who_is_where_and_who_left() {
        let mut board = Board::open(true).unwrap();
        let value = board.variable(&["127.0.0.1".into()]).unwrap();
        let mut a = Client::connect(&value).unwrap();
        let mut b = Client::connect(&value).unwrap();
        a.tell(&state(0, 5)).unwrap();
        a.tell(&state(0, 6)).unwrap();
        b.tell(&state(1, 4)).unwrap();
        until(&mut board, |b| b.ranks.len() == 2 && b.ranks[&0].state.call == 6);
        assert_eq!(board.ranks[&1].state, state(1, 4));
        drop(b);
        until(&mut board, |b| b.ranks[&1].closed.is_some());
        assert!(board.ranks[&0].closed.is_none());
    }

    #[test]
    fn strangers_are_not_heard() {
        let mut board = Board::open(true).unwrap();
        let value = board.variable(&["127.0.0.1".into()]).unwrap();
        let stranger = format!("guess@{}", value.split_once('@').unwrap().1);
        let mut c = Client::connect(&stranger).unwrap();
        let _ = c.tell(&state(0, 1));
        let mut known = Client::connect(&value).unwrap();
        known.tell(&state(1, 1)).unwrap();
        until(&mut board, |b| !b.ranks.is_empty());
        assert!(!board.ranks.contains_key(&0));
    }
}
