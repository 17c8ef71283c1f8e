//! One run of `dw-train` in its own process: a failure ends one row, and each row's memory is
//! measured separately.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use clap::ValueEnum;
use dw_base::file::write_atomically;
use dw_launch::rank::status;

use super::outcome::{Outcome, Setup, measure, without_folder};
use super::plan::{CONFIG, LabRun, WORK, check_interrupted};
use crate::config;
use crate::device::Choice;
use crate::train::lock::Lock;
use crate::train::log::jsonl;
use crate::{Error, Result};

/// File name of the log of `dw-train`, in the folder of a run.
const LOG: &str = "train.log";

/// The signal that makes a run write a checkpoint and exit. Launchers forward it to the ranks; on
/// SIGTERM, mpirun would end them before they have written it.
const STOP: libc::c_int = libc::SIGUSR1;

/// How runs are started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Words in front of `dw-train`, such as `mpirun -n 8`.
    pub launcher: Vec<String>,
    /// Device.
    pub device: Choice,
    /// The GPU of each slot, as in CUDA_VISIBLE_DEVICES; empty if a run sees all of them.
    pub gpus: Vec<String>,
    /// `train.threads` for runs whose configuration does not set it; 0: `dw-train` chooses.
    pub threads: usize,
}

/// A running job.
#[derive(Debug)]
pub struct Job {
    /// What it runs.
    pub run: LabRun,
    /// Index of its slot among the concurrent jobs.
    pub slot: usize,
    child: Child,
    // Held while the run is in progress, so that another `dw-lab` skips it.
    _lock: Lock,
}

impl Job {
    /// Starts a run, or resumes it from its last checkpoint. `None`, with a message in the log, if
    /// another `dw-lab` is running it or has finished it.
    ///
    /// # Errors
    /// A folder that cannot be written, a program that cannot be started.
    pub fn start(run: LabRun, slot: usize, launch: &Launch) -> Result<Option<Self>> {
        let folder = run.folder();
        std::fs::create_dir_all(&folder).map_err(Error::io("cannot create", &folder))?;
        let lock = match Lock::try_take(&folder)? {
            Ok(lock) => lock,
            Err(owner) => {
                tracing::warn!("{}: skipped: it is run by {owner}", run.name());
                return Ok(None);
            }
        };
        // Another dw-lab may have finished the run since the plan was made.
        if run.result.exists() {
            tracing::info!("{}: skipped: finished by another dw-lab", run.name());
            return Ok(None);
        }
        // Another dw-lab may have started it since.
        check_interrupted(&run)?;
        let mut config = run.config.clone();
        if config.train.threads == 0 {
            config.train.threads = launch.threads;
        }
        let text = config.to_toml()?;
        let file = folder.join(CONFIG);
        write_atomically(&file, |f| f.write_all(text.as_bytes()))?;
        let log = folder.join(LOG);
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.map_err(Error::io("cannot open", &log))?;
        let mut command = command(&file, &folder.join(WORK), slot, launch)?;
        command.stdin(Stdio::null());
        command.stderr(output.try_clone().map_err(Error::io("cannot open", &log))?).stdout(output);
        let child = command.spawn().map_err(|e| {
            let doing = format!("cannot start {}", command.get_program().to_string_lossy());
            Error::system(&doing, &e, Error::Usage)
        })?;
        Ok(Some(Self { run, slot, child, _lock: lock }))
    }

    /// The exit status, if the process has ended.
    ///
    /// # Errors
    /// The process cannot be polled.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        let log = self.log();
        self.child.try_wait().map_err(Error::io("cannot wait for the process of", &log))
    }

    /// Asks the process to write a checkpoint and exit.
    pub fn stop(&self) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, STOP) };
    }

    /// The log of the run.
    pub fn log(&self) -> PathBuf {
        self.run.folder().join(LOG)
    }

    /// Writes the result of a process that has exited successfully, from its metrics.
    ///
    /// # Errors
    /// Metrics that are missing or damaged, a file that cannot be written.
    pub fn finish(&self, setup: &Setup) -> Result<Outcome> {
        let metrics = self.run.folder().join(WORK).join(jsonl::NAME);
        let (metrics, cost) = measure(&metrics)?;
        let used = self.run.folder().join(WORK).join(CONFIG);
        let text = std::fs::read_to_string(&used).map_err(Error::io("cannot read", &used))?;
        let outcome = Outcome {
            row: self.run.row.name.clone(),
            info: self.run.row.info.clone(),
            seed: self.run.seed,
            metrics,
            cost,
            setup: setup.clone(),
            precision: Some(config::from_toml(&text, &used)?.train.precision),
            data: self.run.data.clone(),
            config: without_folder(&self.run.config),
        };
        outcome.write(&self.run.result)?;
        Ok(outcome)
    }
}

/// The command line of a run.
fn command(config: &Path, work: &Path, slot: usize, launch: &Launch) -> Result<Command> {
    let this = std::env::current_exe()
        .map_err(|e| Error::Usage(format!("cannot find the folder of this program: {e}")))?;
    let train = this.with_file_name("dw-train");
    let mut words: Vec<_> = launch.launcher.iter().map(Into::into).collect();
    words.push(train.into_os_string());
    let mut command = Command::new(words.remove(0));
    command.args(words).arg(config).arg("--work-dir").arg(work);
    let device = launch.device.to_possible_value();
    command.args(device.iter().flat_map(|d| ["--device", d.get_name()]));
    // Under dw-launch, only this program reports to it: a run that fails does not end the job.
    command.env_remove(status::VARIABLE);
    if let Some(gpu) = launch.gpus.get(slot) {
        command.env("CUDA_VISIBLE_DEVICES", gpu);
    }
    // With a process group of its own, the run does not receive Ctrl-C. If this program dies, the
    // system sends the run the signal to write a checkpoint and exit.
    command.process_group(0);
    // SAFETY: prctl is async-signal-safe and does not touch memory.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, STOP);
            Ok(())
        });
    }
    Ok(command)
}
