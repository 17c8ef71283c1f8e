//! Full verification of a split for `dw-pack verify`: every byte, and the contents of every record.

use std::collections::HashSet;

use dw_base::names;
use dw_base::text::shown;
use dw_base::{Error, Result};
use rayon::prelude::*;

use crate::format::{HEADER, ShardHeader};
use crate::reader::Split;

impl Split {
    /// Checks every byte of every shard on all cores, and the boxes, labels, names and sizes of all
    /// records. The format and size of the pixels are read from their headers, without decoding.
    /// Returns the first problem of the index and of each shard; `tick` is called for each record.
    pub fn verify(&self, tick: impl Fn() + Sync) -> Vec<Error> {
        let mut by_shard: Vec<Vec<usize>> = vec![vec![]; self.shards.len()];
        for (i, e) in self.entries().enumerate() {
            // `Split::open` has checked that every entry names an existing shard.
            if let Some(list) = by_shard.get_mut(e.shard as usize) {
                list.push(i);
            }
        }
        let shard_errors = by_shard
            .par_iter()
            .enumerate()
            .filter_map(|(s, records)| self.verify_shard(s, records, &tick).err());
        let shard_errors: Vec<Error> = shard_errors.collect();
        self.check_image_ids().err().into_iter().chain(shard_errors).collect()
    }

    /// Checks that image ids are unique.
    fn check_image_ids(&self) -> Result<()> {
        let mut seen = HashSet::with_capacity(self.len());
        for (i, e) in self.entries().enumerate() {
            if !seen.insert(e.image_id) {
                let problem =
                    format!("expected a unique image id, found {} a second time", e.image_id);
                return Err(Error::data(self.path(), format!("entry {i}"), problem));
            }
        }
        Ok(())
    }

    /// Checks the header of shard `s`, each of its records, and that the records follow one another
    /// without gaps up to the end of the file.
    fn verify_shard(&self, s: usize, records: &[usize], tick: &(impl Fn() + Sync)) -> Result<()> {
        let (path, bytes) = &self.shards[s];
        let mut at = HEADER as u64;
        for &i in records {
            let e = self.entry(i);
            if e.offset != at {
                let place = format!("record {i} at offset {}", e.offset);
                return Err(Error::data(
                    path,
                    place,
                    format!("expected the record at offset {at}"),
                ));
            }
            at = at.saturating_add(e.length);
        }
        if at != bytes.len() as u64 {
            let place = format!("offset {at}");
            return Err(Error::data(
                path,
                place,
                format!("expected the end of the shard here, found {} bytes", bytes.len()),
            ));
        }
        let header = ShardHeader::from_bytes(bytes).map_err(|e| Error::data(path, "header", e))?;
        let counts = [header.records, self.records_in_shard(s)];
        if counts != [records.len() as u64; 2] {
            let problem = format!(
                "expected {} records (entries of the index), found {} in the header of the shard \
                 and {} in the shard table of the index",
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

    /// Checks the checksum, file name, boxes and pixel header of record `i`.
    fn verify_record(&self, i: usize) -> Result<()> {
        let record = self.record(i)?;
        let name = &record.annotations.file_name;
        names::relative(name)
            .map_err(|e| record.error(format!("`file_name` `{}` {e}", shown(name))))?;
        record.check_pixels()
    }
}
