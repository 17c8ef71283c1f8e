//! `dw-pack verify`: every byte and everything that a pack says.

use std::collections::HashSet;

use dw_base::names;
use dw_base::text::shown;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::format::{HEADER, ShardHeader};
use crate::reader::Split;

impl Split {
    /// Checks every byte of every shard on all cores, and what the records say: boxes, labels,
    /// names, sizes. Kind and size of pixels are checked by their headers; they are not decoded.
    /// Returns the index's first problem and that of each shard.
    pub fn verify(&self, tick: impl Fn() + Sync) -> Vec<Error> {
        let mut by_shard: Vec<Vec<usize>> = vec![vec![]; self.shards.len()];
        for (i, e) in self.entries().enumerate() {
            // Every entry's shard was checked when the split was opened.
            if let Some(list) = by_shard.get_mut(e.shard as usize) {
                list.push(i);
            }
        }
        let of_shards = by_shard
            .par_iter()
            .enumerate()
            .filter_map(|(s, records)| self.verify_shard(s, records, &tick).err());
        let of_shards: Vec<Error> = of_shards.collect();
        self.unique_ids().err().into_iter().chain(of_shards).collect()
    }

    fn unique_ids(&self) -> Result<()> {
        let mut seen = HashSet::with_capacity(self.len());
        for (i, e) in self.entries().enumerate() {
            if !seen.insert(e.image_id) {
                let problem =
                    format!("image id {} was used before; ids must be unique", e.image_id);
                return Err(Error::data(self.path(), format!("entry {i}"), problem));
            }
        }
        Ok(())
    }

    fn verify_shard(&self, s: usize, records: &[usize], tick: &(impl Fn() + Sync)) -> Result<()> {
        let (path, bytes) = &self.shards[s];
        let mut at = HEADER as u64;
        for &i in records {
            let e = self.entry(i);
            if e.offset != at {
                let place = format!("record {i} at offset {}", e.offset);
                return Err(Error::data(path, place, format!("expected it at offset {at}")));
            }
            at = at.saturating_add(e.length);
        }
        if at != bytes.len() as u64 {
            let place = format!("offset {at}");
            return Err(Error::data(path, place, "bytes that belong to no record"));
        }
        let header = ShardHeader::from_bytes(bytes).map_err(|e| Error::data(path, "header", e))?;
        let counts = [header.records, self.records_in_shard(s)];
        if counts != [records.len() as u64; 2] {
            let problem = format!(
                "expected {} records (entries of the index), found {} in the shard's header and {} \
                 in the index's table",
                records.len(),
                counts[0],
                counts[1]
            );
            return Err(Error::data(path, "header", problem));
        }
        let check = |&i: &usize| {
            tick();
            self.verify_record(i).err()
        };
        match records.par_iter().map(check).find_first(Option::is_some).flatten() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn verify_record(&self, i: usize) -> Result<()> {
        let record = self.record(i)?;
        let name = &record.annotations.file_name;
        names::relative(name)
            .map_err(|e| record.bad(format!("`file_name` `{}` {e}", shown(name))))?;
        record.check_pixels()
    }
}
