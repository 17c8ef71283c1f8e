//! A thread of each rank that ends the job when a collective takes too long, when a device's communicator reports an
//! error, or when the time given with a TERM is over; and that tells the supervisor's board where the rank is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::board::{Client, State};
use crate::calls::CallLog;
use crate::collectives::{Collectives, Error, Result};
use crate::{host, signals};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_millis(400);
/// Ranks that wait in the same call run out of time at nearly the same moment: each gets to say so before the first aborts.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Calls of the log that are printed on a timeout.
const TOLD: usize = 32;
/// Name of the thread.
const NAME: &str = "dw-watchdog";

/// What the thread and the rank share.
pub struct Watch {
    deadline_ms: AtomicU64,
    step: AtomicU64,
    stopped: AtomicBool,
    board: Mutex<Option<Client>>,
    rank: usize,
    calls: Arc<CallLog>,
    /// A second implementation, whose background errors count, too.
    device: OnceLock<Arc<dyn Collectives>>,
}

impl Watch {
    /// Nobody watches yet.
    pub fn new(rank: usize, calls: &Arc<CallLog>, deadline: Duration) -> Self {
        Self {
            deadline_ms: AtomicU64::new(deadline.as_millis() as u64),
            step: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            board: Mutex::new(None),
            rank,
            calls: calls.clone(),
            device: OnceLock::new(),
        }
    }

    /// How long a call may take from now on.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline_ms.store(deadline.as_millis() as u64, Ordering::Relaxed);
    }

    /// Where the rank is.
    pub fn set_step(&self, step: usize) {
        self.step.store(step as u64, Ordering::Relaxed);
    }

    /// Looks after a device's communicator, too.
    pub fn also_watch(&self, how: &Arc<dyn Collectives>) {
        // A rank has one device.
        let _ = self.device.set(how.clone());
    }

    /// No more watching.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn tell(&self, state: &State) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        if board.as_mut().is_some_and(|b| b.tell(state).is_err()) {
            // A supervisor that was stopped for a while is there again; without one training goes on all the same.
            *board = Client::from_env().filter(|_| state.end.is_none());
        }
    }

    fn state(&self) -> State {
        let call = self.calls.waiting().or_else(|| self.calls.last());
        State {
            rank: self.rank,
            host: host(),
            pid: std::process::id(),
            step: self.step.load(Ordering::Relaxed),
            call: call.as_ref().map_or(0, |c| c.number),
            tag: call.as_ref().map(|c| c.tag.to_string()).unwrap_or_default(),
            waiting_s: call.filter(|c| c.took.is_none()).map(|c| c.began.elapsed().as_secs_f64()),
            end: None,
        }
    }

    /// Tells the supervisor that this rank ends.
    pub fn tell_end(&self, code: i32, why: &str) {
        self.tell(&State { end: Some((code, why.to_owned())), ..self.state() });
    }
}

/// Starts the thread of a rank.
///
/// # Errors
/// No thread: without it a rank that waits for a lost peer would hang for ever.
pub fn start(watch: &Arc<Watch>, how: &Arc<dyn Collectives>) -> Result<()> {
    *watch.board.lock().unwrap_or_else(PoisonError::into_inner) = Client::from_env();
    crate::abort::tell_board(watch.clone());
    let thread = Thread { watch: watch.clone(), how: how.clone() };
    let builder = std::thread::Builder::new().name(NAME.into());
    if let Err(e) = builder.spawn(move || thread.run()) {
        let e = Error::thread(NAME, &e);
        watch.tell_end(5, &e.to_string());
        return Err(e);
    }
    Ok(())
}

/// Ends the job, and this process even if that hangs.
pub fn end_hard(how: &Arc<dyn Collectives>, code: i32) -> ! {
    crate::abort::exit_after_grace(code);
    how.abort(code)
}

struct Thread {
    watch: Arc<Watch>,
    how: Arc<dyn Collectives>,
}

impl Thread {
    fn run(&self) {
        let mut told = Instant::now();
        let mut term: Option<Instant> = None;
        self.watch.tell(&self.watch.state());
        while !self.watch.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.watch.tell(&self.watch.state());
            }
            if let Some(Err(e)) = self.watch.device.get().map(|d| d.health()) {
                self.end(if e.out_of_resources() { 5 } else { 4 }, &e.to_string());
            }
            let deadline = Duration::from_millis(self.watch.deadline_ms.load(Ordering::Relaxed));
            if let Some(call) = self.watch.calls.waiting().filter(|c| c.began.elapsed() > deadline)
            {
                let seconds = call.began.elapsed().as_secs_f64();
                let why = format!(
                    "waited {seconds:.1} s for the others in collective #{} `{}`",
                    call.number, call.tag
                );
                self.end(4, &why);
            }
            if signals::terminated()
                && term.get_or_insert_with(Instant::now).elapsed() > signals::TERM_GRACE
            {
                let why = format!(
                    "no checkpoint within {} s after SIGTERM",
                    signals::TERM_GRACE.as_secs()
                );
                self.end(4, &why);
            }
        }
    }

    fn end(&self, code: i32, why: &str) -> ! {
        let (rank, host) = (self.watch.rank, host());
        let calls = self.watch.calls.dump(TOLD);
        crate::abort::last_words(&format!(
            "[rank {rank}] error: rank {rank} on {host} {why}: it ends the job (exit code {code})\nhint: a rank that says nothing here, or whose calls lag behind, is the one to look at\nlast calls of rank {rank}:\n{calls}"
        ));
        self.watch.tell_end(code, why);
        std::thread::sleep(LAST_WORDS);
        end_hard(&self.how, code)
    }
}
