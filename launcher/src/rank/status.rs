//! Status reports of a rank: JSON lines over TCP to the monitor of `dw-launch`, several times a
//! second. With them `dw-launch` can name the rank that failed first, or that the others wait for.

use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use dw_base::text::shown;
use serde::{Deserialize, Serialize};

/// Environment variable with the monitor's address, `TOKEN@HOST:PORT,HOST:PORT`. The hosts are
/// tried in order.
pub const VARIABLE: &str = "DW_BOARD";
/// Timeout of connecting to one address, and of a write.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A status report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Rank of the process.
    pub rank: usize,
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Step that the rank works on.
    pub step: u64,
    /// Number of its oldest pending collective, or of its last one.
    pub call: u64,
    /// Tag of that collective.
    pub tag: String,
    /// Seconds since the start of that collective; `None` if it has completed.
    pub waiting_s: Option<f64>,
    /// Exit code and reason, in the last report of a rank.
    pub end: Option<(i32, String)>,
}

/// A rank's connection to the monitor.
#[derive(Debug)]
pub struct Reporter(TcpStream);

impl Reporter {
    /// Connects to the address in [`VARIABLE`]. `None` without a supervisor, or if it cannot be
    /// reached, which is logged.
    pub fn from_env() -> Option<Self> {
        let value = std::env::var(VARIABLE).ok()?;
        let reporter = Self::connect(&value);
        if reporter.is_none() {
            tracing::warn!(
                "cannot reach the supervisor at {}: when a rank is lost, `dw-launch` cannot report \
                 the step and the collective of this rank",
                shown(value.split('@').next_back()?)
            );
        }
        reporter
    }

    /// Connects to an address of the form of [`VARIABLE`].
    pub(crate) fn connect(value: &str) -> Option<Self> {
        let (token, hosts) = value.split_once('@')?;
        for host in hosts.split(',') {
            for address in host.to_socket_addrs().into_iter().flatten() {
                if let Ok(mut stream) = TcpStream::connect_timeout(&address, TIMEOUT)
                    && stream.set_write_timeout(Some(TIMEOUT)).is_ok()
                    && writeln!(stream, "{token}").is_ok()
                {
                    return Some(Self(stream));
                }
            }
        }
        None
    }

    /// Sends a report.
    ///
    /// # Errors
    /// The connection is closed, or the write timed out.
    pub fn send(&mut self, status: &Status) -> std::io::Result<()> {
        let mut line = serde_json::to_string(status)?;
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }
}
