//! A SLURM batch script for one command, from the same text as `slurm/train_multinode.sbatch`, and
//! its submission.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::collectives::{Error, Result};
use crate::command::quote;

/// The script and what it sources, which a written script carries inside.
const TEMPLATE: &str = include_str!("../../slurm/train_multinode.sbatch");
const ENVIRONMENT: &str = include_str!("../../slurm/env.sh");

/// What the batch script asks SLURM for.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "With --slurm")]
pub struct Batch {
    /// Time limit, as 12:00:00
    #[arg(long, requires = "slurm")]
    pub time: Option<String>,
    /// Partition
    #[arg(long, requires = "slurm")]
    pub partition: Option<String>,
    /// Account
    #[arg(long, requires = "slurm")]
    pub account: Option<String>,
    /// GPUs of a node (0: none are asked for)
    #[arg(long, requires = "slurm")]
    pub gpus_per_node: Option<usize>,
    /// Cores of a rank
    #[arg(long, requires = "slurm")]
    pub cpus_per_task: Option<usize>,
    /// Name of the job
    #[arg(long, requires = "slurm", default_value = "dw")]
    pub job_name: String,
    /// Where to write the script [default: dw-JOB_NAME.sbatch]
    #[arg(long, requires = "slurm", value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Replace a script that is there and has other contents
    #[arg(long, requires = "slurm")]
    pub overwrite: bool,
    /// Write the script and do not submit it
    #[arg(long, requires = "slurm")]
    pub no_submit: bool,
}

/// The program's words. Where GPUs are asked for, `dw-train` and `dw-eval` get `--device cuda`
/// unless they have a `--device`: a node without a working GPU is an error then, not a slow run on
/// the CPU.
fn on_device(program: &[String], gpus: usize) -> Vec<String> {
    let mut words = program.to_vec();
    let Some((name, args)) = program.split_first() else { return words };
    let name = Path::new(name).file_name().unwrap_or_default();
    // `dw-eval coco` compares two files: it has no device.
    let computes = name == "dw-train"
        || (name == "dw-eval" && args.first().is_none_or(|command| command != "coco"));
    let chosen = |arg: &String| arg == "--device" || arg.starts_with("--device=");
    if gpus > 0 && computes && !args.iter().any(chosen) {
        words.splice(1..1, ["--device", "cuda"].map(str::to_owned));
    }
    words
}

/// The script's text. `ranks` over all `nodes`; `program` as typed after `--`; `options` go to
/// dw-launch inside the job.
///
/// # Errors
/// Ranks that the nodes cannot share evenly.
pub fn script(
    b: &Batch,
    ranks: usize,
    nodes: usize,
    options: &[String],
    program: &[String],
) -> Result<String> {
    if !ranks.is_multiple_of(nodes) {
        return Err(Error::Failed(format!(
            "-n {ranks} ranks cannot be shared evenly by --nodes {nodes}"
        )));
    }
    let per_node = ranks / nodes;
    let set = |name: &str, value: Option<String>| (name.to_owned(), value);
    let gpus = b.gpus_per_node.unwrap_or(per_node);
    let directives = [
        set("job-name", Some(b.job_name.clone())),
        set("nodes", Some(nodes.to_string())),
        set("ntasks-per-node", Some(per_node.to_string())),
        set("gpus-per-node", (gpus > 0).then(|| gpus.to_string())),
        set("cpus-per-task", b.cpus_per_task.map(|n| n.to_string())),
        set("time", b.time.clone()),
        set("partition", b.partition.clone()),
        set("account", b.account.clone()),
    ];
    for (name, value) in &directives {
        if let Some(v) = value.as_ref().filter(|v| v.contains(char::is_whitespace)) {
            return Err(Error::Failed(format!(
                "--{name} `{v}`: a batch script's directive takes no white space"
            )));
        }
    }
    let mut out = vec![];
    for line in TEMPLATE.lines() {
        // Its own values of these give way; the others (signal, requeue, output) stay.
        let given = line
            .strip_prefix("#SBATCH --")
            .and_then(|d| directives.iter().find(|(name, _)| d.split('=').next() == Some(name)));
        match given {
            Some((name, _)) if matches!(name.as_str(), "time") && b.time.is_none() => {
                out.push(line.to_owned());
            }
            Some((name, _)) if name == "cpus-per-task" && b.cpus_per_task.is_none() && gpus > 0 => {
                out.push(line.to_owned());
            }
            Some(_) => {}
            None if line.starts_with("#!") => {
                out.push(line.to_owned());
                out.extend(
                    directives
                        .iter()
                        .filter_map(|(n, v)| v.as_ref().map(|v| format!("#SBATCH --{n}={v}"))),
                );
            }
            None if line.starts_with("source ") => {
                out.extend(ENVIRONMENT.lines().filter(|l| !l.starts_with("#!")).map(str::to_owned));
            }
            None if line.starts_with("run ") => {
                let words: Vec<String> = options
                    .iter()
                    .chain(std::iter::once(&"--".to_owned()))
                    .chain(&on_device(program, gpus))
                    .map(|w| quote(w))
                    .collect();
                out.push(format!("run dw-launch {}", words.join(" ")));
            }
            // Its comments are about the file in slurm/, its device is decided here.
            None if line.starts_with("# ") || line.starts_with("[[ ") => {}
            None => out.push(line.to_owned()),
        }
    }
    Ok(out.join("\n") + "\n")
}

/// Writes a script, whole or not at all. One that is there with other contents (edited by hand, or of
/// another job) stays, unless `overwrite` is set.
///
/// # Errors
/// Such a script; something else than a file in its place; a folder that cannot be written.
pub fn write(path: &Path, text: &str, overwrite: bool) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => {
            return Err(Error::Failed(format!(
                "--script {shown}: exists and is no regular file\nhint: name another with --script"
            )));
        }
        Ok(meta) if holds(path, meta.len(), text) => return Ok(()),
        Ok(_) if !overwrite => {
            return Err(Error::Failed(format!(
                "the batch script {shown} exists with other contents (edited, or of another job)\n\
                 hint: --script OTHER.sbatch writes another file, --overwrite replaces this one; to \
                 submit it as it is: sbatch {}",
                quote(&path.to_string_lossy())
            )));
        }
        // Not there, or to be replaced; what else is wrong shows when it is written.
        _ => {}
    }
    dw_base::file::write_atomically(path, |file| file.write_all(text.as_bytes()))
        .map_err(|e| Error::Failed(format!("cannot write the batch script {shown}: {e}")))
}

/// Whether a file of `length` bytes holds this text.
fn holds(path: &Path, length: u64, text: &str) -> bool {
    length == text.len() as u64 && std::fs::read(path).is_ok_and(|found| found == text.as_bytes())
}

/// Submits a script; returns what sbatch says.
///
/// # Errors
/// No sbatch, or a script that it refuses.
pub fn submit(path: &Path) -> Result<String> {
    let hint = format!("hint: the script is in {}; submit it where sbatch is", path.display());
    let out = Command::new("sbatch")
        .arg(path)
        .output()
        .map_err(|e| Error::Failed(format!("cannot run sbatch: {e}\n{hint}")))?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).trim().to_owned();
    if out.status.success() {
        Ok(text(&out.stdout))
    } else {
        Err(Error::Failed(format!("sbatch refused {}: {}", path.display(), text(&out.stderr))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_script_carries_the_request() {
        let b = Batch { time: Some("1:00:00".into()), job_name: "r50".into(), ..Batch::default() };
        let program = words("dw-train dw_r50_fpn_1x --set a='x");
        let text = script(&b, 16, 2, &words("--max-restarts 2"), &program).unwrap();
        for line in [
            "#SBATCH --nodes=2",
            "#SBATCH --ntasks-per-node=8",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --time=1:00:00",
            "#SBATCH --requeue",
        ] {
            assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line}\n{text}");
        }
        let run = r"run dw-launch --max-restarts 2 -- dw-train --device cuda dw_r50_fpn_1x --set 'a='\''x'";
        assert_eq!(text.lines().filter(|l| *l == run).count(), 1, "{text}");
        assert!(
            !text.contains("source ") && !text.contains("slurm/env.sh") && text.starts_with("#!"),
            "it stands alone"
        );
        assert!(!text.contains("$*"), "the device is decided when it is written: {text}");
        let cpu = script(
            &Batch { gpus_per_node: Some(0), ..Batch::default() },
            2,
            1,
            &[],
            &words("true"),
        )
        .unwrap();
        assert!(!cpu.contains("gpus-per-node"), "{cpu}");
        let spaced = Batch { job_name: "a b".into(), ..Batch::default() };
        assert!(
            script(&spaced, 2, 1, &[], &[]).unwrap_err().to_string().contains("--job-name `a b`")
        );
        assert!(script(&b, 3, 2, &[], &[]).unwrap_err().to_string().contains("evenly"));
    }

    #[test]
    fn a_device_is_asked_for_with_gpus_only() {
        let line = |gpus: Option<usize>, program: &str| {
            let b = Batch { gpus_per_node: gpus, ..Batch::default() };
            let text = script(&b, 2, 1, &[], &words(program)).unwrap();
            let run = text.lines().find_map(|l| l.strip_prefix("run dw-launch -- "));
            run.unwrap().to_owned()
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
            assert_eq!(line(gpus, program), expected, "{gpus:?}");
        }
    }
}
