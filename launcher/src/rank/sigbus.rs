//! Handler of SIGBUS, which the system sends on access to a memory-mapped file that was truncated
//! or whose storage failed. The default action ends the process without a message; the handler
//! names the file and exits with code 3.
//!
//! The handler calls only async-signal-safe functions: open, read, write, _exit.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use dw_base::exit;

/// Folder of the shared memory that libraries use between processes. A container's limit on it is
/// often low; if it is exceeded, the exit code is 5.
const SHARED_MEMORY: &[u8] = b"/dev/shm/";

static RANK: AtomicUsize = AtomicUsize::new(0);

/// Installs the handler; messages begin with the rank.
pub fn install_handler(rank: usize) {
    RANK.store(rank, Ordering::Relaxed);
    // SAFETY: the handler has the signature that SA_SIGINFO requires and calls async-signal-safe
    // functions only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Writes to standard error.
fn write(text: &[u8]) {
    // SAFETY: writes the bytes of a valid slice.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

extern "C" fn handler(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the system passes a valid pointer.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut digits = [0u8; 20];
    write(b"error: rank ");
    write(decimal(RANK.load(Ordering::Relaxed), &mut digits));
    write(b" lost a mapped file: ");
    let mut line = [0u8; 4352];
    let path = path_at(address, &mut line).unwrap_or(b"(unknown)");
    write(path);
    if path.starts_with(SHARED_MEMORY) {
        write(b"\nhint: shared memory is full: give the container more, with --shm-size=8g or ");
        write(b"--ipc=host (exit code 5)\n");
        // SAFETY: as below.
        unsafe { libc::_exit(exit::RESOURCES) }
    }
    write(b"\nhint: it was truncated, or its storage failed, while it was read; check it with ");
    write(b"`dw-pack verify` (exit code 3)\n");
    // SAFETY: ends the process immediately; the launcher ends the peers.
    unsafe { libc::_exit(exit::DATA) }
}

/// Formats a number without allocating.
fn decimal(mut n: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &digits[at..];
        }
    }
}

/// Path of the mapping that contains an address, from /proc/self/maps.
fn path_at(address: usize, line: &mut [u8; 4352]) -> Option<&[u8]> {
    // SAFETY: a constant path; the descriptor is closed when the process exits.
    let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY) };
    let (mut chunk, mut len) = ([0u8; 4096], 0);
    loop {
        // SAFETY: reads into an array of that length.
        let n = unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) };
        if n <= 0 {
            return None;
        }
        for &byte in &chunk[..n as usize] {
            if byte != b'\n' {
                if len < line.len() {
                    line[len] = byte;
                    len += 1;
                }
                continue;
            }
            if let Some(start) = path_in(&line[..len], address) {
                return Some(&line[start..len]);
            }
            len = 0;
        }
    }
}

/// Offset of the path in a line `7f00-7fff r--s 00000000 08:01 123   /path`, if the line's range
/// contains the address.
fn path_in(line: &[u8], address: usize) -> Option<usize> {
    let mut at = 0;
    let mut number = |end: u8| {
        let mut value = 0usize;
        while at < line.len() && line[at] != end {
            value = value << 4 | (line[at] as char).to_digit(16)? as usize;
            at += 1;
        }
        at += 1;
        Some(value)
    };
    let (first, last) = (number(b'-')?, number(b' ')?);
    if !(first..last).contains(&address) {
        return None;
    }
    line.iter().position(|&b| b == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_a_mapped_address_is_found() {
        let line = b"7f10-7f20 r--s 00000000 08:01 123   /data/a b.dwshard";
        assert_eq!(path_in(line, 0x7f18).map(|at| &line[at..]), Some(&b"/data/a b.dwshard"[..]));
        assert_eq!(path_in(line, 0x7f20), None);
        assert_eq!(decimal(0, &mut [0; 20]), b"0");
        assert_eq!(decimal(4096, &mut [0; 20]), b"4096");
        let own = path_at(path_of_a_mapped_address_is_found as *const () as usize, &mut [0; 4352])
            .map(<[u8]>::to_vec);
        assert!(own.is_some_and(|p| p.starts_with(b"/")), "the test binary itself is mapped");
    }
}
