//! `dw-lab`: trains the rows of a table, several seeds each, and compares them.
//!
//! * [`table`]: the rows of a table
//! * [`outcome`]: the result of one row with one seed, as a JSON file
//! * [`plan`]: which runs there are, and which of them are finished
//! * [`job`]: one run as a process of `dw-train`
//! * [`run`]: the runs of a table, several at a time
//! * [`statistics`]: means, and intervals of paired differences
//! * [`summary`], [`show`]: the finished runs as a table

pub mod job;
pub mod outcome;
pub mod plan;
pub mod run;
pub mod show;
pub mod statistics;
pub mod summary;
pub mod table;
