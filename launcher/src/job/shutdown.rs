//! The steps in which a job is ended: checkpoint request, SIGTERM to the launcher, SIGTERM and
//! SIGKILL to its process group. The state machine takes the time as an argument and sends no
//! signals itself.

use std::time::{Duration, Instant};

/// Time from SIGTERM to SIGKILL of the launcher's process group.
const KILL_AFTER: Duration = Duration::from_secs(2);

/// Numbers of signals that `dw-launch` has received since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Checkpoint requests: SIGUSR1.
    pub(crate) checkpoint: usize,
    /// Requests to end the job: SIGINT, SIGQUIT, SIGTERM, SIGHUP.
    pub(crate) stop: usize,
}

/// What the supervisor has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Forward a checkpoint request: SIGUSR1 to the launcher.
    Checkpoint,
    /// Log that the job ends after a checkpoint, and request it: SIGUSR1 to the launcher.
    CheckpointAndStop,
    /// SIGTERM to the launcher, which ends its ranks.
    Terminate,
    /// Log that the launcher does not exit, and send SIGTERM to its process group.
    TerminateGroup,
    /// SIGKILL to the launcher's process group.
    KillGroup,
}

/// Progress of the shutdown, with the time at which the stage was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    CheckpointRequested(Instant),
    Terminating(Instant),
    /// SIGTERM was sent to the process group.
    Killing(Instant),
}

/// State machine of a job's shutdown.
#[derive(Debug)]
pub(crate) struct Shutdown {
    stage: Stage,
    /// Time for a checkpoint after the first stop request.
    grace: Duration,
    /// Time for the launcher to exit after SIGTERM or a rank's failure.
    tear_down: Duration,
    /// Number of checkpoint requests that were handled.
    checkpoints: usize,
    /// Number of stop requests that were handled; `None` once they no longer have an effect.
    stops: Option<usize>,
}

impl Shutdown {
    /// The state for a running job. Requests that arrived while the job was being started are
    /// handled, too.
    pub(crate) fn new(grace: Duration, tear_down: Duration) -> Self {
        Self { stage: Stage::Running, grace, tear_down, checkpoints: 0, stops: Some(0) }
    }

    /// What to do now; to be called regularly. `failed`: when the first rank failed.
    pub(crate) fn advance(
        &mut self,
        received: Received,
        failed: Option<Instant>,
        now: Instant,
    ) -> Vec<Action> {
        let checkpoint = self.on_checkpoint_requests(received);
        let stop = self.on_stop_requests(received, now);
        [checkpoint, stop, self.on_time(failed, now)].into_iter().flatten().collect()
    }

    fn on_checkpoint_requests(&mut self, received: Received) -> Option<Action> {
        (received.checkpoint > self.checkpoints).then(|| {
            self.checkpoints += 1;
            Action::Checkpoint
        })
    }

    /// The first request asks for a checkpoint, later ones end the ranks.
    fn on_stop_requests(&mut self, received: Received, now: Instant) -> Option<Action> {
        if received.stop <= self.stops? {
            return None;
        }
        self.stops = Some(received.stop);
        let (stage, action) = if received.stop == 1 {
            (Stage::CheckpointRequested(now), Action::CheckpointAndStop)
        } else {
            (Stage::Terminating(now), Action::Terminate)
        };
        if !matches!(self.stage, Stage::Killing(_)) {
            self.stage = stage;
        }
        Some(action)
    }

    fn on_time(&mut self, failed: Option<Instant>, now: Instant) -> Option<Action> {
        let over = |since: Instant, limit| now.saturating_duration_since(since) > limit;
        let late = failed.is_some_and(|at| over(at, self.tear_down));
        match self.stage {
            Stage::Killing(since) => over(since, KILL_AFTER).then_some(Action::KillGroup),
            Stage::Terminating(since) if late || over(since, self.tear_down) => {
                Some(self.terminate_group(now))
            }
            _ if late => Some(self.terminate_group(now)),
            Stage::CheckpointRequested(since) if over(since, self.grace) => {
                self.stops = None;
                self.stage = Stage::Terminating(now);
                Some(Action::Terminate)
            }
            _ => None,
        }
    }

    fn terminate_group(&mut self, now: Instant) -> Action {
        self.stage = Stage::Killing(now);
        Action::TerminateGroup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shutdown with 60 s of grace and 8 s of tear-down, at a time given in seconds.
    struct Clock {
        shutdown: Shutdown,
        start: Instant,
        received: Received,
        failed: Option<Instant>,
    }

    impl Clock {
        fn new() -> Self {
            let (grace, tear_down) = (Duration::from_mins(1), Duration::from_secs(8));
            let shutdown = Shutdown::new(grace, tear_down);
            let (start, received) = (Instant::now(), Received::default());
            Self { shutdown, start, received, failed: None }
        }

        fn at(&mut self, seconds: u64) -> Vec<Action> {
            let now = self.start + Duration::from_secs(seconds);
            self.shutdown.advance(self.received, self.failed, now)
        }
    }

    #[test]
    fn stop_request_leads_from_a_checkpoint_to_a_kill() {
        let mut clock = Clock::new();
        assert_eq!(clock.at(0), []);
        clock.received.stop = 1;
        assert_eq!(clock.at(1), [Action::CheckpointAndStop]);
        assert_eq!(clock.at(61), []);
        assert_eq!(clock.at(62), [Action::Terminate]);
        clock.received.stop = 2;
        assert_eq!(clock.at(70), [], "the ranks are being ended already");
        assert_eq!(clock.at(71), [Action::TerminateGroup]);
        assert_eq!(clock.at(73), []);
        assert_eq!(clock.at(74), [Action::KillGroup]);
        assert_eq!(clock.at(75), [Action::KillGroup], "until the launcher has exited");
    }

    #[test]
    fn second_stop_request_ends_the_ranks_immediately() {
        let mut clock = Clock::new();
        clock.received.stop = 1;
        assert_eq!(clock.at(1), [Action::CheckpointAndStop]);
        clock.received.stop = 2;
        assert_eq!(clock.at(2), [Action::Terminate]);
        assert_eq!(clock.at(10), []);
        assert_eq!(clock.at(11), [Action::TerminateGroup]);
    }

    #[test]
    fn launcher_that_does_not_exit_after_a_failure_is_ended() {
        let mut clock = Clock::new();
        clock.failed = Some(clock.start);
        assert_eq!(clock.at(8), []);
        assert_eq!(clock.at(9), [Action::TerminateGroup]);
        clock.received.stop = 1;
        assert_eq!(clock.at(10), [Action::CheckpointAndStop]);
        assert_eq!(clock.at(12), [Action::KillGroup]);
    }

    #[test]
    fn checkpoint_requests_are_forwarded_one_at_a_time() {
        let mut clock = Clock::new();
        clock.received.checkpoint = 2;
        assert_eq!(clock.at(1), [Action::Checkpoint]);
        assert_eq!(clock.at(2), [Action::Checkpoint]);
        assert_eq!(clock.at(3), []);
    }

    #[test]
    fn unlimited_grace_does_not_overflow() {
        let mut shutdown = Shutdown::new(Duration::MAX, Duration::MAX);
        let stop = Received { checkpoint: 0, stop: 1 };
        assert_eq!(shutdown.advance(stop, None, Instant::now()), [Action::CheckpointAndStop]);
        assert_eq!(shutdown.advance(stop, Some(Instant::now()), Instant::now()), []);
    }
}
