//! Directories written by hand, and what an opening makes of them: each place where it may end, each reason not to.

use super::*;
use crate::buffer::Region;
use crate::format::{Kind, QueueKey, RECORD_HEADER_BYTES, RecordHeader, crc32c};
use std::collections::BTreeMap;

const PARTITION: u16 = 2;
/// Bytes of most segments here.
const SEGMENT: u64 = 64 << 10;
const HEADER: usize = BATCH_HEADER_BYTES + RECORD_HEADER_BYTES;

/// One batch, before it gets its checksums.
#[derive(Clone, Copy)]
struct Draft {
    at: u64,
    payload: usize,
    header: BatchHeader,
}

/// A directory, and what is asked of it.
struct Disk {
    config: LogConfig,
    segment_bytes: u64,
    files: BTreeMap<String, Vec<u8>>,
    segments: u64,
    head: u64,
    chain: u32,
    epoch: u64,
    durable: u64,
    opened: Vec<String>,
    asked: Vec<Op>,
    /// The file system takes direct writes.
    direct: bool,
    /// Fails the first operation that it is true of.
    fails: Option<fn(&Op) -> bool>,
    /// Where each batch lies that was found.
    found: Vec<u64>,
}

impl Disk {
    fn new(segment_bytes: u64) -> Disk {
        let memory = Region::new(1, BLOCK_BYTES as usize).unwrap();
        let mut disk = Disk {
            config: LogConfig::new("/store/p2", PARTITION, memory, |_| None),
            segment_bytes,
            files: BTreeMap::new(),
            segments: 0,
            head: 0,
            chain: 0,
            epoch: 1,
            durable: 0,
            opened: Vec::new(),
            asked: Vec::new(),
            direct: true,
            fails: None,
            found: Vec::new(),
        };
        disk.segment();
        disk
    }

    /// One more segment; the log goes on there.
    fn segment(&mut self) {
        let base = self.segments * self.segment_bytes;
        let mut file = SegmentHeader { partition: PARTITION, base, bytes: self.segment_bytes }.encode().to_vec();
        file.resize(self.segment_bytes as usize, 0);
        self.files.insert(name(base), file);
        self.segments += 1;
        self.head = base + SEGMENT_HEADER_BYTES;
    }

    /// A batch that would go on at the head, with one message of so many bytes.
    fn draft(&self, payload: usize) -> Draft {
        let header = BatchHeader {
            partition: PARTITION,
            length: (HEADER + payload) as u32,
            records: 1,
            epoch: self.epoch,
            base: self.head,
            durable: self.durable,
            closed_ms: 1_000_000 + self.head,
            previous: self.chain,
        };
        Draft { at: self.head, payload, header }
    }

    /// As [`draft`](Disk::draft), but empty: it raises an epoch or names a watermark.
    fn announcement(&self) -> Draft {
        let mut draft = self.draft(0);
        (draft.header.length, draft.header.records) = (BATCH_HEADER_BYTES as u32, 0);
        draft
    }

    /// Puts a batch where it belongs. Returns its checksum.
    fn put(&mut self, draft: Draft) -> u32 {
        let payload = vec![b'R'; draft.payload];
        let record = RecordHeader {
            length: payload.len() as u32,
            crc: crc32c::crc32c(&payload),
            kind: Kind::Message,
            queue: QueueKey { topic: 1, queue: 0 },
            note: 0,
            offset: 0,
        };
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        let mut headers = 0;
        if draft.header.records > 0 {
            headers = crc32c::crc32c(&record.encode());
            bytes.extend_from_slice(&record.encode());
            bytes.extend_from_slice(&payload);
        }
        let crc = draft.header.encode(&mut bytes, headers);
        let at = (draft.at % self.segment_bytes) as usize;
        self.file(draft.at)[at..at + bytes.len()].copy_from_slice(&bytes);
        crc
    }

    /// A batch at the head. Returns where it lies.
    fn batch(&mut self, payload: usize) -> u64 {
        let draft = self.draft(payload);
        self.chain = self.put(draft);
        self.head = draft.header.end();
        draft.at
    }

    /// The next batch is the first one on the next block.
    fn next_block(&mut self) {
        self.head = self.head.next_multiple_of(BLOCK_BYTES);
    }

    /// The log ends so that this much of the segment is left.
    fn leave(&mut self, bytes: u64) {
        let end = self.segments * self.segment_bytes - bytes;
        self.batch((end - self.head) as usize - HEADER);
        assert_eq!(self.head, end);
    }

    fn file(&mut self, byte: u64) -> &mut Vec<u8> {
        self.files.get_mut(&name(byte - byte % self.segment_bytes)).unwrap()
    }

    fn flip(&mut self, byte: u64) {
        let at = (byte % self.segment_bytes) as usize;
        self.file(byte)[at] ^= 1;
    }

    fn answer(&mut self, op: Op) -> Result<Outcome, Fault> {
        if self.fails.take_if(|fails| fails(&op)).is_some() {
            return Err(Fault(libc::EIO));
        }
        let outcome = match &op {
            Op::CreateDirectory { .. } | Op::SyncDirectory { .. } => Ok(Outcome::Nothing),
            Op::List { .. } => {
                let files = self.files.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64));
                Ok(Outcome::Names(files.collect()))
            }
            Op::Remove { path } => {
                assert!(self.files.remove(path.file_name().unwrap().to_str().unwrap()).is_some());
                Ok(Outcome::Nothing)
            }
            Op::Open { how, .. } if how.direct && !self.direct => Err(Fault(libc::EINVAL)),
            Op::Open { path, how } => {
                assert!(!how.create && !how.read_only);
                self.opened.push(path.file_name().unwrap().to_str().unwrap().into());
                Ok(Outcome::Opened(Handle(self.opened.len() as i32)))
            }
            Op::Read { file: Handle(number), at, length } => {
                let bytes = &self.files[&self.opened[*number as usize - 1]];
                assert!(at.is_multiple_of(BLOCK_BYTES) && u64::from(*length).is_multiple_of(BLOCK_BYTES));
                let (from, to) = (*at as usize, (at + u64::from(*length)) as usize);
                Ok(Outcome::Read(Bytes::copy_from_slice(&bytes[from..to])))
            }
            other => panic!("{other:?} changes something"),
        };
        self.asked.push(op);
        outcome
    }

    /// Up to the moment when all files are known.
    fn ready(&mut self) -> Result<Recovery, Box<(OpenError, Recovery)>> {
        (self.opened, self.asked, self.found) = (Vec::new(), Vec::new(), Vec::new());
        let mut recovery = Recovery::new(&self.config);
        let mut op = recovery.first();
        loop {
            let outcome = self.answer(op);
            match recovery.on_done(outcome, &mut |batch| panic!("{:?} is too early", batch.header)) {
                Ok(Next::Do(next)) => op = next,
                Ok(Next::Ready) => return Ok(recovery),
                Ok(Next::Finished(found)) => panic!("{found:?}"),
                Err(error) => return Err(Box::new((error, recovery))),
            }
        }
    }

    fn recover_from(&mut self, known: Option<End>, durable: u64, times: &[(u64, u64)]) -> Result<Found, OpenError> {
        let recovery = self.ready().map_err(|refused| refused.0)?;
        self.follow(recovery, known, durable, times)
    }

    /// From the moment when all files are known.
    fn follow(
        &mut self,
        mut recovery: Recovery,
        known: Option<End>,
        durable: u64,
        times: &[(u64, u64)],
    ) -> Result<Found, OpenError> {
        let mut found = Vec::new();
        let mut next = recovery.begin(known, durable, times, &mut |batch| found.push(batch.header.base));
        loop {
            match next {
                Ok(Next::Do(op)) => {
                    let outcome = self.answer(op);
                    next = recovery.on_done(outcome, &mut |batch| found.push(batch.header.base));
                }
                Ok(Next::Ready) => unreachable!("it has begun"),
                Ok(Next::Finished(there)) => {
                    self.found = found;
                    return Ok(there);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn recover(&mut self) -> Result<Found, OpenError> {
        self.recover_from(None, 0, &[])
    }

    /// Lengths and places of the reads of the log.
    fn reads(&self) -> Vec<(u64, u64)> {
        let reads = self.asked.iter().filter_map(|op| match op {
            Op::Read { at, length, .. } if *at > 0 => Some((*at, u64::from(*length))),
            _ => None,
        });
        reads.collect()
    }
}

fn path(file: &str) -> PathBuf {
    Path::new("/store/p2").join(file)
}

#[test]
fn a_directory_is_durable_before_it_is_listed() {
    for (directory, above) in [("/store/p2", "/store"), ("p2", ".")] {
        let mut disk = Disk::new(SEGMENT);
        disk.files.clear();
        disk.config.directory = directory.into();
        let found = disk.recover().unwrap();
        assert_eq!((found.end, found.durable, found.live.len(), found.direct), (End::default(), 0, 0, true));
        let asked = format!("{:?}", disk.asked);
        let expected = [
            Op::CreateDirectory { path: directory.into() },
            Op::SyncDirectory { path: above.into() },
            Op::SyncDirectory { path: directory.into() },
            Op::List { path: directory.into() },
        ];
        assert_eq!(asked, format!("{expected:?}"));
    }
}

#[test]
fn every_batch_is_told_in_order_wherever_it_starts() {
    let mut disk = Disk::new(SEGMENT);
    let mut told = vec![disk.batch(10), disk.batch(5000), disk.batch(0)];
    disk.next_block();
    (disk.epoch, disk.durable) = (4, disk.head);
    told.push(disk.batch(7));
    // To the very end of the segment, and then with less room left than a header takes.
    disk.leave(0);
    told.push(told.last().unwrap() + (HEADER + 7) as u64);
    disk.segment();
    told.push(disk.head);
    disk.leave(BATCH_HEADER_BYTES as u64 - 1);
    disk.segment();
    told.push(disk.head);
    disk.leave(BATCH_HEADER_BYTES as u64);
    disk.segment();
    (disk.epoch, disk.durable) = (9, disk.head);
    told.extend([disk.batch(1), disk.batch(2)]);
    let last = disk.head;
    disk.segment();

    let found = disk.recover().unwrap();
    assert_eq!(disk.found, told);
    assert_eq!((found.end, found.durable), (End { head: last, chain: disk.chain, epoch: 9 }, 3 * SEGMENT + 4096));
    let segments: Vec<_> = found.live.iter().map(|segment| (segment.base, segment.newest_ms)).collect();
    let newest = [told[4], told[5], told[6], told[8]].map(|base| 1_000_000 + base);
    assert_eq!(
        segments,
        [(0, newest[0]), (SEGMENT, newest[1]), (2 * SEGMENT, newest[2]), (3 * SEGMENT, newest[3]), (4 * SEGMENT, 0)]
    );
    let zeroed: Vec<_> = found.live.iter().map(|segment| segment.zeroed_to).collect();
    let ends = [SEGMENT, 2 * SEGMENT - 63, 3 * SEGMENT - 64, last, 4 * SEGMENT + 4096];
    assert_eq!(zeroed, ends, "what lies behind a segment's last batch was never written");
    assert_eq!(found.live.iter().map(|segment| segment.handle.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn an_empty_batch_fits_where_nothing_else_does() {
    let mut disk = Disk::new(SEGMENT);
    disk.leave(BATCH_HEADER_BYTES as u64);
    let last = disk.announcement();
    disk.put(last);
    let found = disk.recover().unwrap();
    assert_eq!((disk.found.last(), found.end.head), (Some(&last.at), SEGMENT));
    // With a byte less, nothing is looked for: nor read, behind the last segment.
    let mut disk = Disk::new(SEGMENT);
    disk.leave(BATCH_HEADER_BYTES as u64 - 1);
    assert_eq!(disk.recover().unwrap().end.head, disk.head);
}

#[test]
fn a_log_begins_in_its_oldest_segment_or_not_at_all() {
    let mut disk = Disk::new(SEGMENT);
    disk.segment();
    disk.batch(10);
    let found = disk.recover().unwrap();
    assert_eq!((disk.found.len(), found.end), (0, End { head: SEGMENT_HEADER_BYTES, ..End::default() }));
}

#[test]
fn a_batch_that_does_not_continue_the_log_is_not_believed() {
    type Change = fn(&mut Draft);
    let changes: [(&str, bool, Change); 9] = [
        ("nothing", true, |_| {}),
        ("a newer epoch", true, |draft| draft.header.epoch += 1),
        ("an older epoch", false, |draft| draft.header.epoch -= 1),
        ("another place, lower", false, |draft| draft.header.base -= SEGMENT),
        ("another place, higher", false, |draft| draft.header.base += 1),
        ("another partition", false, |draft| draft.header.partition += 1),
        ("another batch before it", false, |draft| draft.header.previous ^= 1),
        ("an impossible length", false, |draft| draft.header.length = 1 << 30),
        ("longer than the segment", false, |draft| draft.header.length = SEGMENT as u32),
    ];
    for (what, is_believed, change) in changes {
        for behind in [false, true] {
            let mut disk = Disk::new(SEGMENT);
            disk.segment();
            disk.epoch = 5;
            let first = disk.batch(100);
            if !behind {
                disk.next_block();
            }
            let end = if behind { disk.head } else { first + (HEADER + 100) as u64 };
            let mut draft = disk.draft(100);
            change(&mut draft);
            let crc = disk.put(draft);
            // Nothing is known of the segment before; it only makes places below this one possible.
            let known = End { head: first, chain: 0, epoch: 5 };
            let found = disk.recover_from(Some(known), 0, &[]).unwrap();
            let expected = if is_believed { vec![first, draft.at] } else { vec![first] };
            assert_eq!(disk.found, expected, "{what}");
            let head = if is_believed { draft.header.end() } else { end };
            assert_eq!(found.end.head, head, "{what}");
            assert_eq!(found.end.chain == crc, is_believed, "{what}");
        }
    }
}

#[test]
fn a_newer_format_is_refused_by_the_name_of_its_file() {
    let mut disk = Disk::new(SEGMENT);
    disk.batch(10);
    let draft = disk.draft(0);
    disk.put(draft);
    let at = draft.at as usize;
    // Its sums are right, for its version.
    let file = disk.file(0);
    file[at + 5] = 9;
    let record = crc32c::crc32c(&file[at + BATCH_HEADER_BYTES..at + HEADER]);
    let crc = crc32c::crc32c_append(record, &file[at..at + 60]);
    file[at + 60..at + 64].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(disk.recover().unwrap_err(), OpenError::Version { path: path(&name(0)), version: 9 });

    let mut disk = Disk::new(SEGMENT);
    let file = disk.file(0);
    file[9] = 4;
    file[12..16].fill(0);
    let crc = crc32c::crc32c(&file[..32]);
    file[12..16].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(disk.recover().unwrap_err(), OpenError::Version { path: path(&name(0)), version: 4 });
}

#[test]
fn what_is_no_segment_is_removed_kept_or_left_alone() {
    let mut disk = Disk::new(SEGMENT);
    disk.batch(1);
    let spare = format!("spare-{}", name(7));
    for (file, bytes) in [("next", 5), (&*spare, 77), ("run-1", 9), ("checkpoint", 9), ("12", 9), ("x", 9)] {
        disk.files.insert(file.into(), vec![0; bytes]);
    }
    disk.files.insert("0000000000000000000a".into(), vec![0; 5]);
    let found = disk.recover().unwrap();
    assert!(!disk.files.contains_key("next"), "it was about to get a name");
    assert_eq!(disk.opened, [name(0), spare.clone()]);
    assert_eq!(found.spares, [(path(&spare), Handle(2), 77)]);
    assert_eq!(found.live.len(), 1);
    let recovery = disk.ready().unwrap();
    assert_eq!(recovery.files().len(), 7);
    assert!(recovery.is_direct());
    assert_eq!(recovery.segments().collect::<Vec<_>>(), [(0, SEGMENT)]);
    assert_eq!(recovery.handles(), [Handle(1), Handle(2)]);
}

#[test]
fn a_file_system_without_direct_writes_is_used_all_the_same() {
    let mut disk = Disk::new(SEGMENT);
    disk.segment();
    disk.direct = false;
    assert!(disk.ready().unwrap().is_direct() == disk.direct);
    let found = disk.recover().unwrap();
    assert!(!found.direct && found.live.len() == 2);
    let direct = disk.asked.iter().filter(|op| matches!(op, Op::Open { how, .. } if how.direct));
    assert_eq!(direct.count(), 1, "it is tried once");
    // The same error means something else once it was tried, and another one at once.
    disk.fails = Some(|op| matches!(op, Op::Open { .. }));
    disk.direct = true;
    assert_eq!(disk.recover().unwrap_err(), OpenError::Io { path: path(&name(0)), fault: Fault(libc::EIO) });
}

#[test]
fn a_failed_operation_names_what_it_was_for() {
    type Fails = fn(&Op) -> bool;
    let table: [(Fails, PathBuf, usize); 8] = [
        (|op| matches!(op, Op::CreateDirectory { .. }), path(""), 0),
        (|op| matches!(op, Op::SyncDirectory { .. }), path(""), 0),
        (|op| matches!(op, Op::List { .. }), path(""), 0),
        (|op| matches!(op, Op::Remove { .. }), path("next"), 2),
        (|op| matches!(op, Op::Open { path, .. } if path.ends_with(name(SEGMENT))), path(&name(SEGMENT)), 1),
        (|op| matches!(op, Op::Read { file: Handle(2), at: 0, .. }), path(&name(SEGMENT)), 2),
        (|op| matches!(op, Op::Open { path, .. } if path.ends_with("spare-1")), path("spare-1"), 2),
        (|op| matches!(op, Op::Read { file: Handle(2), at, .. } if *at > 0), path(&name(SEGMENT)), 0),
    ];
    for (fails, at, open) in table {
        let mut disk = Disk::new(SEGMENT);
        disk.batch(1);
        disk.segment();
        disk.files.insert("next".into(), vec![0; 5]);
        disk.files.insert("spare-1".into(), vec![0; 5]);
        disk.fails = Some(fails);
        match disk.ready() {
            Err(refused) => {
                let (error, recovery) = *refused;
                assert_eq!(error, OpenError::Io { path: at.join("").components().collect(), fault: Fault(libc::EIO) });
                assert_eq!(recovery.handles().len(), open, "all that is open is closed: {error}");
            }
            Ok(_) => {
                // While the log is read, or searched behind its end.
                let error = disk.recover().unwrap_err();
                assert_eq!(error, OpenError::Io { path: at, fault: Fault(libc::EIO) });
            }
        }
    }
    // Behind the end, the segment that the log ends in is named.
    let mut disk = Disk::new(1 << 20);
    disk.batch(1);
    disk.fails = Some(|op| matches!(op, Op::Read { at, .. } if *at >= 512 << 10));
    assert_eq!(disk.recover().unwrap_err(), OpenError::Io { path: path(&name(0)), fault: Fault(libc::EIO) });
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    let mut disk = Disk::new(SEGMENT);
    let mut recovery = disk.ready().unwrap();
    let mut refuse = |batch: Batch<'_>| panic!("{:?}", batch.header);
    let Ok(Next::Do(Op::Read { .. })) = recovery.begin(None, 0, &[], &mut refuse) else { panic!("it reads") };
    let error = recovery.on_done(Ok(Outcome::Read(Bytes::new())), &mut refuse).unwrap_err();
    assert_eq!(error, OpenError::Io { path: path(&name(0)), fault: Fault(libc::EIO) });
}

#[test]
fn segments_that_do_not_fit_together_are_refused() {
    let header = |partition, base, bytes| SegmentHeader { partition, base, bytes }.encode();
    let refused = OpenError::Header { path: path(&name(SEGMENT)) };
    for harm in [header(3, SEGMENT, SEGMENT), header(2, 2 * SEGMENT, SEGMENT), header(2, SEGMENT, 1), [0; 32]] {
        let mut disk = Disk::new(SEGMENT);
        disk.segment();
        disk.file(SEGMENT)[..32].copy_from_slice(&harm);
        let (error, recovery) = *disk.ready().unwrap_err();
        assert_eq!(error, refused);
        assert_eq!(recovery.handles(), [Handle(1), Handle(2)], "also the one that is refused");
    }
    let mut disk = Disk::new(SEGMENT);
    disk.segment();
    disk.segment();
    disk.files.remove(&name(SEGMENT));
    let gap = OpenError::Gap { path: path(&name(2 * SEGMENT)), byte: SEGMENT };
    assert_eq!(disk.recover().unwrap_err(), gap);
    disk.files.remove(&name(0));
    let found = disk.recover().unwrap();
    assert_eq!(found.end.head, 2 * SEGMENT + SEGMENT_HEADER_BYTES, "a log may begin anywhere");
}

#[test]
fn a_torn_tail_is_forgotten_and_damage_inside_is_refused() {
    // What is missing was not durable as far as anybody knows, or it was.
    for (durable_after, inside) in [(0, false), (1, true)] {
        for flipped in [0, 70, HEADER as u64] {
            let mut disk = Disk::new(SEGMENT);
            disk.batch(100);
            let end = disk.head;
            disk.next_block();
            let torn = disk.batch(100);
            disk.next_block();
            disk.durable = end + durable_after;
            disk.batch(100);
            disk.flip(torn + flipped);
            match disk.recover() {
                Ok(found) => assert!(!inside && found.end.head == end && found.durable == 0),
                Err(error) => {
                    assert_eq!(error, OpenError::Inside { path: path(&name(0)), byte: end, durable: end + 1 });
                    assert!(inside);
                }
            }
        }
    }
}

#[test]
fn only_an_intact_header_in_its_place_is_believed_behind_the_end() {
    type Change = fn(&mut Draft);
    let table: [(&str, bool, Change, Option<usize>); 8] = [
        ("nothing", true, |_| {}, None),
        ("its payload is damaged", true, |_| {}, Some(HEADER + 3)),
        ("it is damaged", false, |_| {}, Some(45)),
        ("its record's header is damaged", false, |_| {}, Some(BATCH_HEADER_BYTES + 13)),
        ("it lies elsewhere", false, |draft| draft.header.base += BLOCK_BYTES, None),
        ("it is another partition's", false, |draft| draft.header.partition += 1, None),
        ("it names what it cannot know", false, |draft| draft.header.durable = draft.header.base + 1, None),
        ("it names all before it", true, |draft| draft.header.durable = draft.header.base, None),
    ];
    for (what, inside, change, flip) in table {
        // Anywhere, also across two reads of it.
        for place in [9001, (256 << 10) + 4096 - 20, (256 << 10) + 4096 + 20 - HEADER as u64, (1 << 20) - 300] {
            let mut disk = Disk::new(1 << 20);
            disk.batch(100);
            let end = disk.head;
            let mut draft = Draft { at: place, ..disk.draft(150) };
            (draft.header.base, draft.header.previous, draft.header.durable) = (place, 77, end + 10);
            change(&mut draft);
            disk.put(draft);
            flip.into_iter().for_each(|at| disk.flip(place + at as u64));
            match disk.recover() {
                Ok(found) => assert!(!inside && found.end.head == end, "{what} at {place}"),
                Err(error) => {
                    let OpenError::Inside { byte, durable, .. } = error else { panic!("{error}") };
                    assert_eq!((inside, byte, durable), (true, end, draft.header.durable), "{what} at {place}");
                }
            }
        }
    }
}

#[test]
fn the_last_bytes_of_a_segment_are_searched() {
    // To the very last one, and also behind what would be longer than the segment.
    for (place, lies) in [(SEGMENT - BATCH_HEADER_BYTES as u64, None), (SEGMENT - 1024, Some(SEGMENT - 2048))] {
        let mut disk = Disk::new(SEGMENT);
        disk.batch(100);
        let end = disk.head;
        for (place, length, durable) in lies.map(|lies| (lies, 1 << 20, 0)).into_iter().chain([(place, 64, end + 10)]) {
            let mut draft = Draft { at: place, ..disk.announcement() };
            (draft.header.base, draft.header.length, draft.header.durable) = (place, length, durable);
            disk.put(draft);
        }
        let inside = OpenError::Inside { path: path(&name(0)), byte: end, durable: end + 10 };
        assert_eq!(disk.recover().unwrap_err(), inside, "at {place}");
    }
}

#[test]
fn the_search_behind_the_end_goes_as_far_as_batches_may_have_been_under_way() {
    let reach = 4 * u64::from(BATCH_BYTES_MAX);
    // It ends with the read that has the last place.
    for (place, inside) in [(reach - 4096, true), (reach + READ_BYTES_MAX + BLOCK_BYTES, false)] {
        let mut disk = Disk::new(16 << 20);
        disk.config.inflight_batches = 1;
        disk.batch(100);
        let end = disk.head;
        (0..3).for_each(|_| disk.segment());
        let place = (end + place).next_multiple_of(BLOCK_BYTES);
        let mut draft = Draft { at: place, ..disk.draft(0) };
        (draft.header.base, draft.header.previous, draft.header.durable) = (place, 77, place);
        disk.put(draft);
        assert_eq!(disk.recover().is_err(), inside, "at {place}");
        let most: u64 = disk.reads().iter().map(|(_, length)| length).sum();
        assert!(most <= reach + 6 * u64::from(BATCH_BYTES_MAX), "{most} bytes were read");
    }
}

#[test]
fn the_search_goes_on_behind_each_batch_that_it_finds() {
    // A watermark may lag by more than what is in the kernel: batches that wait were closed before, and an asynchronous
    // log learns late what is durable.
    let reach = 4 * u64::from(BATCH_BYTES_MAX);
    let mut disk = Disk::new(64 << 20);
    disk.config.inflight_batches = 1;
    disk.batch(100);
    let end = disk.head;
    disk.segment();
    disk.segment();
    let step = reach - 2 * BLOCK_BYTES;
    for (count, durable) in [(1, 0), (2, end), (3, 0), (4, end + 1)] {
        let place = (end + count * step).next_multiple_of(BLOCK_BYTES);
        let mut draft = Draft { at: place, ..disk.draft(5_000) };
        (draft.header.base, draft.header.previous, draft.header.durable) = (place, 77, durable);
        disk.put(draft);
    }
    let inside = OpenError::Inside { path: path(&name(0)), byte: end, durable: end + 1 };
    assert_eq!(disk.recover().unwrap_err(), inside);
    // Not beyond what may have been under way with the last of them, and the read that has the last place of that.
    let last = (end + 4 * step).next_multiple_of(BLOCK_BYTES);
    disk.flip(last);
    let mut draft = Draft { at: last + READ_BYTES_MAX + BLOCK_BYTES, ..disk.draft(5_000) };
    (draft.header.base, draft.header.previous, draft.header.durable) = (draft.at, 77, end + 2);
    disk.put(draft);
    assert_eq!(disk.recover().unwrap().end.head, end);
}

#[test]
fn a_checkpoint_says_where_to_begin_and_what_must_be_there() {
    let mut disk = Disk::new(SEGMENT);
    disk.batch(100);
    disk.leave(0);
    disk.segment();
    disk.batch(100);
    let known = End { head: disk.head, chain: disk.chain, epoch: 1 };
    disk.epoch = 2;
    let next = disk.batch(50);
    let end = End { head: disk.head, chain: disk.chain, epoch: 2 };
    let times = [(SEGMENT, 42), (0, 41), (9, 40)];
    let found = disk.recover_from(Some(known), disk.head, &times).unwrap();
    assert_eq!((disk.found.clone(), found.end, found.durable), (vec![next], end, disk.head));
    let segments: Vec<_> = found.live.iter().map(|segment| (segment.newest_ms, segment.zeroed_to)).collect();
    assert_eq!(segments, [(41, SEGMENT), (1_000_000 + next, disk.head)]);
    // The end of a segment lies in it, too. The next one has its header, and nothing else.
    let full = End { head: SEGMENT, chain: 5, epoch: 1 };
    let found = disk.recover_from(Some(full), 0, &times).unwrap();
    assert_eq!(found.end, full);
    assert_eq!((found.live[1].newest_ms, found.live[1].zeroed_to), (0, SEGMENT + SEGMENT_HEADER_BYTES));
    // One byte more than there is was durable.
    let path = path(&name(SEGMENT));
    let inside = |byte, durable| OpenError::Inside { path: path.clone(), byte, durable };
    assert_eq!(disk.recover_from(Some(known), end.head + 1, &[]).unwrap_err(), inside(end.head, end.head + 1));
    // The log itself is gone.
    let beyond = End { head: 2 * SEGMENT + 1, ..known };
    assert_eq!(disk.recover_from(Some(beyond), 7, &[]).unwrap_err(), inside(beyond.head, 7));
}

#[test]
fn a_batch_across_two_reads_is_found() {
    let mut disk = Disk::new(1 << 20);
    let told = [200_000, 100_000, 10].map(|payload| disk.batch(payload));
    assert_eq!(disk.recover().unwrap().end.head, disk.head);
    assert_eq!(disk.found, told);
}

#[test]
fn reads_grow_and_stay_within_their_segment() {
    let mut disk = Disk::new(16 << 20);
    disk.batch(100);
    // Larger than several reads.
    disk.batch(5 << 20);
    let end = disk.head;
    let found = disk.recover().unwrap();
    assert_eq!(found.end.head, end);
    let lengths: Vec<u64> = disk.reads().iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths[..6], [256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20, 4 << 20]);
    assert!(disk.reads().windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "no byte is read twice");
    let (at, length) = *disk.reads().last().unwrap();
    assert_eq!(at + length, 16 << 20);
}

#[test]
fn a_segment_is_read_again_a_little_at_a_time_and_no_further() {
    let mut disk = Disk::new(2 << 20);
    disk.segment();
    let base = disk.segment_bytes;
    let mut told: Vec<u64> = (0..8).map(|_| disk.batch(100_000)).collect();
    let to = disk.head;
    disk.batch(100_000);
    let again = |disk: &mut Disk| {
        disk.opened = vec![name(base)];
        disk.asked.clear();
        let recovery = Recovery::again(&disk.config, base, Handle(1), to);
        disk.follow(recovery, None, 0, &[]).unwrap().end.head
    };
    let mut reads = vec![(4096, READ_BYTES_MIN), (4096 + READ_BYTES_MIN, READ_BYTES_MIN)];
    reads.push((4096 + 2 * READ_BYTES_MIN, READ_BYTES_MIN));
    reads.push((4096 + 3 * READ_BYTES_MIN, to.next_multiple_of(BLOCK_BYTES) - base - 4096 - 3 * READ_BYTES_MIN));
    assert_eq!(again(&mut disk), to);
    assert_eq!((&disk.found, disk.reads()), (&told, reads.clone()));
    // Where the log is damaged nobody asks what lies behind.
    disk.flip(told[3] + HEADER as u64);
    assert_eq!(again(&mut disk), told[3]);
    told.truncate(3);
    reads.truncate(2);
    assert_eq!((&disk.found, disk.reads()), (&told, reads));
}

#[test]
fn a_window_drops_whole_blocks_and_no_more() {
    let mut window = Window { from: BLOCK_BYTES, bytes: vec![1; 3 * BLOCK_BYTES as usize].into() };
    for byte in [2 * BLOCK_BYTES + 900, 2 * BLOCK_BYTES] {
        window.skip_to(byte);
        assert_eq!((window.from, window.end()), (2 * BLOCK_BYTES, 4 * BLOCK_BYTES), "at {byte}");
    }
}

#[test]
fn progress_counts_what_was_read() {
    let mut disk = Disk::new(SEGMENT);
    disk.batch(100);
    disk.durable = disk.head;
    disk.batch(100);
    disk.segment();
    let mut recovery = disk.ready().unwrap();
    assert_eq!((recovery.progress(), recovery.durable()), ((0, 2 * SEGMENT), 0));
    let mut count = 0;
    let mut next = recovery.begin(None, 0, &[], &mut |_| count += 1);
    let mut read = 0;
    while let Ok(Next::Do(op)) = next {
        let Op::Read { length, .. } = op else { panic!("{op:?}") };
        read += u64::from(length);
        let outcome = disk.answer(op);
        next = recovery.on_done(outcome, &mut |_| count += 1);
        assert_eq!(recovery.progress().0, read);
    }
    assert!(matches!(next, Ok(Next::Finished(_))) && count == 2);
    assert_eq!(recovery.durable(), disk.durable);
}

#[test]
fn an_error_says_which_file_and_byte() {
    let at = || path("17");
    let said = [
        (OpenError::Io { path: at(), fault: Fault(libc::EIO) }, vec!["/store/p2/17", "os error 5"]),
        (OpenError::Inside { path: at(), byte: 33, durable: 44 }, vec!["/store/p2/17", "33", "44", "acknowledged"]),
        (OpenError::Gap { path: at(), byte: 33 }, vec!["/store/p2/17", "33", "missing"]),
        (OpenError::Header { path: at() }, vec!["/store/p2/17", "header"]),
        (OpenError::Version { path: at(), version: 9 }, vec!["/store/p2/17", "version 9"]),
    ];
    for (error, words) in said {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}
