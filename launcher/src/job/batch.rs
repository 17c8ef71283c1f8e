//! SLURM batch scripts for a job, generated from `slurm/train_multinode.sbatch`, and their
//! submission.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use dw_base::program::print_message;
use dw_base::{Error, Result};

use super::command::quote;

/// The script that generated ones are derived from.
const TEMPLATE: &str = include_str!("../../../slurm/train_multinode.sbatch");
/// The file that the template sources; generated scripts contain its text.
const ENVIRONMENT: &str = include_str!("../../../slurm/env.sh");

/// Options for the batch script.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of --slurm")]
pub struct Batch {
    /// Time limit, such as 12:00:00
    #[arg(long, requires = "slurm")]
    pub time: Option<String>,
    /// Partition
    #[arg(long, requires = "slurm")]
    pub partition: Option<String>,
    /// Account
    #[arg(long, requires = "slurm")]
    pub account: Option<String>,
    /// GPUs per node; 0 requests none [default: the ranks per node]
    #[arg(long, requires = "slurm")]
    pub gpus_per_node: Option<usize>,
    /// Cores per rank
    #[arg(long, requires = "slurm")]
    pub cpus_per_task: Option<usize>,
    /// Name of the job
    #[arg(long, requires = "slurm", default_value = "dw")]
    pub job_name: String,
    /// File to write the script to [default: dw-JOB_NAME.sbatch]
    #[arg(long, requires = "slurm", value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Replace an existing script with other contents
    #[arg(long, requires = "slurm")]
    pub overwrite: bool,
    /// Write the script without submitting it
    #[arg(long, requires = "slurm")]
    pub no_submit: bool,
}

impl Batch {
    /// File to write the script to.
    pub fn path(&self) -> PathBuf {
        let default = || PathBuf::from(format!("dw-{}.sbatch", self.job_name));
        self.script.clone().unwrap_or_else(default)
    }
}

/// A job to write a script for.
#[derive(Debug)]
pub struct BatchJob<'a> {
    /// Options for the script.
    pub batch: &'a Batch,
    /// Number of ranks on all nodes.
    pub ranks: usize,
    /// Number of nodes.
    pub nodes: usize,
    /// Name or path of `dw-launch` inside the job.
    pub launcher: &'a str,
    /// Options of `dw-launch` inside the job.
    pub options: &'a [String],
    /// Program of the ranks and its arguments.
    pub program: &'a [String],
}

impl BatchJob<'_> {
    /// Text of the script.
    ///
    /// # Errors
    /// A number of ranks that is not divisible by the nodes, or an option with white space.
    pub fn script(&self) -> Result<String> {
        let (ranks, nodes) = (self.ranks, self.nodes);
        if !ranks.is_multiple_of(nodes) {
            return Err(Error::Usage(format!(
                "-n {ranks} --nodes {nodes}: expected a number of ranks divisible by the nodes"
            )));
        }
        let directives = self.directives()?;
        let mut out = vec![];
        for line in TEMPLATE.lines() {
            if let Some(directive) = line.strip_prefix("#SBATCH --") {
                let name = directive.split('=').next().unwrap_or_default();
                // Directives without an option (signal, requeue, output) are kept.
                if !directives.iter().any(|d| d.name == name) || self.keeps_default(name) {
                    out.push(line.to_owned());
                }
            } else if line.starts_with("#!") {
                out.push(line.to_owned());
                out.extend(directives.iter().filter_map(Directive::line));
            } else if line.starts_with("source ") {
                out.extend(ENVIRONMENT.lines().filter(|l| !l.starts_with("#!")).map(str::to_owned));
            } else if line.starts_with("run ") {
                out.push(self.run_line()?);
            } else if !line.starts_with("# ") && !line.starts_with("[[ ") {
                // The template's comments are about the file in slurm/; its test for `--device` is
                // replaced by `program_on_device`.
                out.push(line.to_owned());
            }
        }
        Ok(out.join("\n") + "\n")
    }

    fn ranks_per_node(&self) -> usize {
        self.ranks / self.nodes
    }

    fn gpus_per_node(&self) -> usize {
        self.batch.gpus_per_node.unwrap_or_else(|| self.ranks_per_node())
    }

    /// The directives that options set.
    fn directives(&self) -> Result<Vec<Directive>> {
        let b = self.batch;
        let gpus = self.gpus_per_node();
        let directives = [
            ("job-name", Some(b.job_name.clone())),
            ("nodes", Some(self.nodes.to_string())),
            ("ntasks-per-node", Some(self.ranks_per_node().to_string())),
            ("gpus-per-node", (gpus > 0).then(|| gpus.to_string())),
            ("cpus-per-task", b.cpus_per_task.map(|n| n.to_string())),
            ("time", b.time.clone()),
            ("partition", b.partition.clone()),
            ("account", b.account.clone()),
        ]
        .map(|(name, value)| Directive { name, value });
        for Directive { name, value } in &directives {
            if let Some(value) = value.as_ref().filter(|v| v.contains(char::is_whitespace)) {
                return Err(Error::Usage(format!(
                    "--{name} `{value}`: expected no white space, which a batch script's directive \
                     does not allow"
                )));
            }
        }
        Ok(directives.into())
    }

    /// Whether the template's value of a directive is used.
    fn keeps_default(&self, name: &str) -> bool {
        match name {
            "time" => self.batch.time.is_none(),
            "cpus-per-task" => self.batch.cpus_per_task.is_none() && self.gpus_per_node() > 0,
            _ => false,
        }
    }

    /// The line that runs `dw-launch`.
    fn run_line(&self) -> Result<String> {
        let program = program_on_device(self.program, self.gpus_per_node());
        let mut line = format!("run {}", quote(self.launcher)?);
        for word in self.options.iter().chain([&"--".to_owned()]).chain(&program) {
            line.push(' ');
            line += &quote(word)?;
        }
        Ok(line)
    }
}

/// An `#SBATCH` directive; without a value it is left out.
struct Directive {
    name: &'static str,
    value: Option<String>,
}

impl Directive {
    fn line(&self) -> Option<String> {
        Some(format!("#SBATCH --{}={}", self.name, self.value.as_ref()?))
    }
}

/// Adds `--device cuda` to `dw-train` and `dw-eval` if the script requests GPUs and no `--device`
/// is given: a node without a working GPU is then an error, and not a slow run on the CPU.
fn program_on_device(program: &[String], gpus: usize) -> Vec<String> {
    let mut words = program.to_vec();
    let Some((name, args)) = program.split_first() else { return words };
    let name = Path::new(name).file_name().unwrap_or_default();
    // `dw-eval coco` compares two files, and has no `--device`.
    let has_device = name == "dw-train"
        || (name == "dw-eval" && args.first().is_none_or(|command| command != "coco"));
    let given = |arg: &String| arg == "--device" || arg.starts_with("--device=");
    if gpus > 0 && has_device && !args.iter().any(given) {
        words.splice(1..1, ["--device", "cuda"].map(str::to_owned));
    }
    words
}

/// Writes a script atomically. An existing file with other contents (edited by hand, or of another
/// job) is replaced only with `overwrite`.
///
/// # Errors
/// Such a file without `overwrite`; a path that is not a regular file; a folder that cannot be
/// written.
pub fn write(path: &Path, text: &str, overwrite: bool) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => Err(Error::Usage(format!(
            "--script {shown}: exists and is not a regular file\nhint: choose another path with \
             --script"
        ))),
        Ok(meta) if has_contents(path, meta.len(), text) => Ok(()),
        Ok(_) if !overwrite => Err(Error::Usage(format!(
            "the batch script {shown} exists with other contents (edited, or of another job)\n\
             hint: --script OTHER.sbatch writes another file, --overwrite replaces this one; \
             to submit the existing file: sbatch {}",
            quote(&path.to_string_lossy())?
        ))),
        // The file is missing or is to be replaced; any other problem is reported by the write.
        _ => dw_base::file::write_atomically(path, |file| file.write_all(text.as_bytes())),
    }
}

/// Whether a file of `length` bytes contains this text.
fn has_contents(path: &Path, length: u64, text: &str) -> bool {
    length == text.len() as u64 && std::fs::read(path).is_ok_and(|found| found == text.as_bytes())
}

/// Submits a script; returns the output of sbatch.
///
/// # Errors
/// No sbatch, or a script that it rejects.
pub fn submit(path: &Path) -> Result<String> {
    let shown = path.display();
    let out = Command::new("sbatch").arg(path).output().map_err(|e| {
        Error::Usage(format!(
            "cannot run sbatch: {e}\nhint: the script is {shown}; submit it on a machine that has \
             sbatch"
        ))
    })?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).trim().to_owned();
    if out.status.success() {
        // Notes that sbatch prints on success, such as those of the partition.
        if !out.stderr.is_empty() {
            print_message(&text(&out.stderr));
        }
        Ok(text(&out.stdout))
    } else {
        Err(Error::Usage(format!("sbatch rejected {shown}: {}", text(&out.stderr))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn script(batch: &Batch, ranks: usize, nodes: usize, program: &[String]) -> Result<String> {
        let options = &words("--max-restarts 2");
        BatchJob { batch, ranks, nodes, launcher: "dw-launch", options, program }.script()
    }

    #[test]
    fn script_has_the_directives_and_the_command() {
        let b = Batch { time: Some("1:00:00".into()), job_name: "r50".into(), ..Batch::default() };
        let text = script(&b, 16, 2, &words("dw-train dw_r50_fpn_1x --set a='x")).unwrap();
        for line in [
            "#SBATCH --nodes=2",
            "#SBATCH --ntasks-per-node=8",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --cpus-per-task=12",
            "#SBATCH --time=1:00:00",
            "#SBATCH --requeue",
        ] {
            assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line}\n{text}");
        }
        let run: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("run ")).collect();
        let expected = "dw-launch --max-restarts 2 -- dw-train --device cuda dw_r50_fpn_1x --set \
                        a='x";
        assert_eq!(run.len(), 1, "{text}");
        assert_eq!(shlex::split(run[0]).unwrap(), words(expected));
        assert!(text.starts_with("#!"), "{text}");
        for absent in ["source ", "slurm/env.sh", "$*"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }

    #[test]
    fn no_directive_for_zero_gpus() {
        let b = Batch { gpus_per_node: Some(0), ..Batch::default() };
        let text = script(&b, 2, 1, &words("true")).unwrap();
        assert!(!text.contains("gpus-per-node") && !text.contains("cpus-per-task"), "{text}");
    }

    #[test]
    fn impossible_requests_are_usage_errors() {
        let spaced = Batch { job_name: "a b".into(), ..Batch::default() };
        for (batch, ranks, program, key) in [
            (spaced, 2, "true", "--job-name `a b`"),
            (Batch::default(), 3, "true", "-n 3"),
            (Batch::default(), 2, "a\0b", "shell"),
        ] {
            let e = script(&batch, ranks, 2, &words(program)).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains(key), "{e}");
        }
    }

    #[test]
    fn device_is_added_with_gpus_only() {
        let line = |gpus: Option<usize>, program: &str| {
            let b = Batch { gpus_per_node: gpus, ..Batch::default() };
            let text = script(&b, 2, 1, &words(program)).unwrap();
            let run = text.lines().find_map(|l| l.strip_prefix("run dw-launch "));
            shlex::split(run.unwrap().split_once(" -- ").unwrap().1).unwrap()
        };
        for (gpus, program, expected) in [
            (None, "dw-train smoke", "dw-train --device cuda smoke"),
            (Some(2), "./bin/dw-eval --compare a b", "./bin/dw-eval --device cuda --compare a b"),
            (Some(2), "dw-train", "dw-train --device cuda"),
            (Some(0), "dw-train smoke", "dw-train smoke"),
            (Some(2), "dw-train smoke --device cpu", "dw-train smoke --device cpu"),
            (Some(2), "dw-train --device=auto", "dw-train --device=auto"),
            (Some(2), "dw-eval coco --gt a", "dw-eval coco --gt a"),
            (Some(2), "dw-launch measure", "dw-launch measure"),
        ] {
            assert_eq!(line(gpus, program), words(expected), "{gpus:?}");
        }
    }
}
