//! Logs written by hand, harmed, and walked along.

use super::view::View;
use super::*;
use crate::checkpoint;
use crate::format::derived::{Closing, Piece as CheckpointPiece, PieceKind, encode_begin};
use crate::format::{BATCH_HEADER_BYTES, Kind, QueueKey, RecordHeader, SegmentHeader, crc32c};
use crate::log::End;
use crate::recover::{Next, OpenError, Recovery};
use crate::segment::name;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

const SEGMENT: u64 = 64 << 10;
const QUEUE: QueueKey = QueueKey { topic: 3, queue: 1 };

/// A log written by hand, each batch where the log would put it.
struct Maker {
    /// How long its segments are.
    segment: u64,
    /// What they begin with; zeros behind.
    files: Vec<Vec<u8>>,
    head: u64,
    chain: u32,
    durable: u64,
    next: u64,
    /// Where each batch lies.
    batches: Vec<(u64, u64)>,
}

impl Maker {
    fn new() -> Maker {
        Maker::of(SEGMENT)
    }

    fn of(segment: u64) -> Maker {
        let (files, batches) = (Vec::new(), Vec::new());
        let mut maker = Maker { segment, files, head: 0, chain: 0, durable: 0, next: 0, batches };
        maker.segment();
        maker
    }

    fn segment(&mut self) {
        let base = self.files.len() as u64 * self.segment;
        let mut file = vec![0; SEGMENT as usize];
        let header = SegmentHeader { partition: 2, base, bytes: self.segment }.encode();
        file[..header.len()].copy_from_slice(&header);
        self.files.push(file);
        self.head = base + SEGMENT_HEADER_BYTES;
    }

    /// A batch of messages of these sizes.
    fn batch(&mut self, sizes: &[usize]) {
        let mut out = vec![0; BATCH_HEADER_BYTES];
        let mut crc = 0;
        for size in sizes {
            let payload = vec![b'm'; *size];
            let (crc_of, length) = (crc32c::crc32c(&payload), *size as u32);
            let header =
                RecordHeader { length, crc: crc_of, kind: Kind::Message, queue: QUEUE, note: 0, offset: self.next }
                    .encode();
            crc = crc32c::crc32c_append(crc, &header);
            out.extend_from_slice(&header);
            out.extend_from_slice(&payload);
            self.next += 1;
        }
        if self.head % self.segment + out.len() as u64 > self.segment {
            self.segment();
        }
        let header = BatchHeader {
            partition: 2,
            length: out.len() as u32,
            records: sizes.len() as u32,
            epoch: 1,
            base: self.head,
            durable: self.durable,
            closed_ms: 1_700_000_000_000 + self.head,
            previous: self.chain,
        };
        self.chain = header.encode(&mut out, crc);
        let (file, at) = ((self.head / self.segment) as usize, (self.head % self.segment) as usize);
        self.files[file][at..at + out.len()].copy_from_slice(&out);
        self.batches.push((self.head, out.len() as u64));
        self.durable = self.head;
        self.head += out.len() as u64;
    }

    /// Several segments, batches behind one another and on blocks, and the empty one of an idle log.
    fn log() -> Maker {
        let mut maker = Maker::new();
        for round in 0..40 {
            maker.batch(&[round * 70, 9, 1500]);
            if round % 3 == 0 {
                maker.head = maker.head.next_multiple_of(BLOCK_BYTES);
            }
        }
        maker.durable = maker.head;
        maker.batch(&[]);
        assert!(maker.files.len() > 2);
        maker
    }

    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (index, file) in self.files.iter().enumerate() {
            let path = dir.path().join(name(index as u64 * self.segment));
            std::fs::write(&path, file).unwrap();
            OpenOptions::new().write(true).open(path).unwrap().set_len(self.segment).unwrap();
        }
        dir
    }

    fn byte(&mut self, byte: u64) -> &mut u8 {
        &mut self.files[(byte / SEGMENT) as usize][(byte % SEGMENT) as usize]
    }
}

/// Where batches were seen, damages as file number, byte and words, and the end.
fn walk(dir: &Path) -> (Vec<u64>, Vec<(u64, u64, String)>, Ending) {
    let mut inspector = Inspector::open(dir, None).unwrap();
    let (mut batches, mut damages) = (Vec::new(), Vec::new());
    let ending = inspector.walk(0, &mut |sight| {
        match sight {
            Sight::Batch(batch, _) => batches.push(batch.header.base),
            Sight::Damage(damage) => {
                let file = base(damage.path.file_name().unwrap().to_str().unwrap()).unwrap();
                damages.push((file, damage.byte, damage.what));
            }
            Sight::Read(_) => {}
        }
        ControlFlow::Continue(())
    });
    (batches, damages, ending.expect("nobody broke off"))
}

#[test]
fn a_whole_log_is_seen_as_it_was_written() {
    let maker = Maker::log();
    let dir = maker.write();
    let (batches, damages, ending) = walk(dir.path());
    assert_eq!(batches, maker.batches.iter().map(|batch| batch.0).collect::<Vec<_>>());
    assert_eq!(damages, []);
    let wanted = Ending {
        head: maker.head,
        epoch: 1,
        durable: maker.durable,
        behind: Behind::Zeros,
        stranded: None,
        moved: false,
    };
    assert_eq!(ending, wanted);
    // From a segment in the middle on, and broken off there.
    let mut seen = Vec::new();
    let ended = Inspector::open(dir.path(), Some(2)).unwrap().walk(SEGMENT + 5, &mut |sight| {
        if let Sight::Batch(batch, _) = sight {
            seen.push(batch.header.base);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    assert_eq!((seen, ended), (vec![SEGMENT + SEGMENT_HEADER_BYTES], None));
}

#[test]
fn every_damaged_byte_of_a_batch_is_named_and_nothing_else_is_lost() {
    let whole = Maker::log();
    for (index, (at, length)) in whole.batches.iter().enumerate() {
        let is_last = index + 1 == whole.batches.len();
        let bytes = [0, 5, 9, 20, 26, 34, 48, 63, 64, 70, 96, 100, 180, length - 1];
        for byte in bytes.into_iter().skip(index % 4).step_by(4) {
            let mut maker = Maker::log();
            if byte >= *length {
                continue;
            }
            *maker.byte(at + byte) ^= 4;
            let dir = maker.write();
            let (batches, damages, ending) = walk(dir.path());
            let others: Vec<u64> = whole.batches.iter().map(|batch| batch.0).filter(|base| base != at).collect();
            assert_eq!(batches, others, "batch {index} byte {byte}");
            if is_last {
                // Nobody was told of it: its torn remains are the tail.
                let before = whole.batches[index - 1];
                assert_eq!((damages.len(), ending.head), (0, before.0 + before.1), "byte {byte}: {damages:?}");
                continue;
            }
            assert_eq!(ending.head, maker.head, "batch {index} byte {byte}");
            let (file, place, what) = &damages[0];
            // The byte itself in a payload; else the batch, or the end of the one before where it begins.
            let (from, to) = (if index > 0 { whole.batches[index - 1] } else { (*at, 0) }, file + place);
            let near = from.0 + from.1 <= to && to <= at + byte;
            assert!(near && *file <= at / SEGMENT * SEGMENT, "batch {index} at {at} byte {byte}: {damages:?}");
            let first = 70 * index as u64;
            let payloads = [96..96 + first, 128 + first..137 + first, 169 + first..*length];
            let is_payload = payloads.iter().any(|range| range.contains(&byte));
            assert_eq!(what.contains("payload"), is_payload, "batch {index} byte {byte}: {what}");
            let missing = damages[1..].iter().filter(|damage| damage.2.contains("3 offsets")).count();
            assert_eq!(missing, usize::from(!is_payload && index > 0 && index < 39), "{damages:?}");
            assert_eq!(damages.len(), 1 + missing, "{damages:?}");
        }
    }
}

#[test]
fn an_opening_does_not_pass_over_a_first_batch_that_is_damaged() {
    let mut maker = Maker::log();
    *maker.byte(SEGMENT_HEADER_BYTES + 17) ^= 1;
    let dir = maker.write();
    let inspector = Inspector::open(dir.path(), None).unwrap();
    let view = View { partition: 2, pieces: inspector.pieces(), from: 0 };
    let mut recovery = Recovery::new(&view.config());
    let mut op = recovery.first();
    let error = loop {
        let mut refuse = |batch: Batch<'_>| panic!("{:?} does not come first", batch.header);
        let next = match recovery.on_done(view.answer(op), &mut refuse) {
            Ok(Next::Ready) => recovery.begin(None, 0, &[], &mut refuse),
            next => next,
        };
        match next {
            Ok(Next::Ready) => unreachable!("it has begun"),
            Ok(Next::Do(next)) => op = next,
            Ok(Next::Finished(found)) => panic!("{found:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, OpenError::Inside { byte: SEGMENT_HEADER_BYTES, .. }), "{error}");
}

#[test]
fn what_is_wrong_with_files_is_named_and_the_rest_is_read() {
    type Harm = fn(&Path);
    fn file(dir: &Path, index: u64) -> PathBuf {
        dir.join(name(index * SEGMENT))
    }
    fn cut(path: &Path, bytes: u64) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }
    fn flip(path: &Path, byte: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[byte] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let table: [(Harm, u64, &str); 6] = [
        (|dir| flip(&file(dir, 0), 3), 0, "header is damaged"),
        (|dir| flip(&file(dir, 1), 21), SEGMENT, "header is damaged"),
        (|dir| std::fs::remove_file(file(dir, 1)).unwrap(), 2 * SEGMENT, "65536 to 131072"),
        (|dir| cut(&file(dir, 1), 40_000), SEGMENT, "40000 bytes, and 65536"),
        (|dir| assert!(std::fs::copy(file(dir, 0), file(dir, 1)).is_ok()), SEGMENT, "the file was renamed"),
        (|dir| cut(&file(dir, 1), 0), SEGMENT, "header is damaged"),
    ];
    let maker = Maker::log();
    for (harm, wanted, words) in table {
        let dir = maker.write();
        harm(dir.path());
        let (batches, damages, ending) = walk(dir.path());
        assert!((damages[0].0, damages[0].1) == (wanted, 0) && damages[0].2.contains(words), "{damages:?}");
        assert_eq!(ending.head, maker.head, "{words}: {damages:?}");
        let others = maker.batches.iter().filter(|batch| batch.0 / SEGMENT != 1).count();
        assert!(batches.len() >= others, "{words}: {} of {others}", batches.len());
    }
    let dir = maker.write();
    let mut header = SegmentHeader { partition: 2, base: SEGMENT, bytes: SEGMENT }.encode();
    header[9] = 9;
    header[12..16].fill(0);
    let crc = crc32c::crc32c(&header);
    header[12..16].copy_from_slice(&crc.to_be_bytes());
    let mut bytes = std::fs::read(file(dir.path(), 1)).unwrap();
    bytes[..header.len()].copy_from_slice(&header);
    std::fs::write(file(dir.path(), 1), bytes).unwrap();
    let (_, damages, _) = walk(dir.path());
    assert!(damages[0].2.contains("format version 9"), "{damages:?}");
}

#[test]
fn a_torn_tail_is_no_damage_and_what_lies_behind_the_end_is_told() {
    // The newest batch is cut in the middle, or replaced by what a recycled file holds.
    let torn = |maker: &mut Maker, at: u64, length: u64| {
        (at + length / 2..at + length).for_each(|byte| *maker.byte(byte) = 0);
    };
    let stale = |maker: &mut Maker, at: u64, _: u64| *maker.byte(at + 29) ^= 1;
    let noise = |maker: &mut Maker, at: u64, _: u64| (at..at + 64).for_each(|byte| *maker.byte(byte) = 0xab);
    type Harm<'a> = &'a dyn Fn(&mut Maker, u64, u64);
    let table: [(Harm<'_>, Behind); 3] =
        [(&torn, Behind::Torn(1628)), (&stale, Behind::Stale), (&noise, Behind::Other)];
    for (harm, behind) in table {
        let mut maker = Maker::new();
        maker.batch(&[100]);
        maker.batch(&[1500, 0]);
        let (at, length) = maker.batches[1];
        harm(&mut maker, at, length);
        let (batches, damages, ending) = walk(maker.write().path());
        assert_eq!((batches.len(), damages, ending.head, ending.behind), (1, vec![], at, behind));
    }
    // A whole batch behind the hole, which was not acknowledged.
    let mut maker = Maker::new();
    for _ in 0..3 {
        maker.durable = 0;
        maker.batch(&[100]);
    }
    let (at, last) = (maker.batches[1].0, maker.batches[2].0);
    *maker.byte(at + 2) ^= 1;
    let (batches, damages, ending) = walk(maker.write().path());
    assert_eq!((batches.len(), damages, ending.head, ending.stranded), (1, vec![], at, Some(last)));
    // Nothing at all.
    let dir = tempfile::tempdir().unwrap();
    let (batches, damages, ending) = walk(dir.path());
    assert_eq!((batches.len(), damages.len(), ending.head, ending.behind), (0, 0, 0, Behind::Nothing));
}

/// Writes a checkpoint as a log does: everything below `head` is durable.
fn write_checkpoint(dir: &Path, head: u64) {
    let begin = encode_begin(End { head, chain: 7, epoch: 1 });
    let end = Closing { durable: head, begun: None, snapshot: None }.encode();
    let mut bytes = Vec::new();
    for (number, (kind, payload)) in [(PieceKind::Begin, &begin[..]), (PieceKind::End, &end)].into_iter().enumerate() {
        CheckpointPiece { partition: 2, number: number as u32, kind, payload }.encode(&mut bytes);
    }
    fs::write(dir.join("checkpoint.new"), bytes).unwrap();
    fs::rename(dir.join("checkpoint.new"), dir.join(checkpoint::NAME)).unwrap();
}

/// A log in use: segments are made, filled, retired and used again as the log does it, and checkpoints promise it.
#[test]
fn a_log_in_use_is_not_called_damaged() {
    const SEGMENTS: u64 = 2_000;
    const KEPT: u64 = 4;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let path = |file: &str| dir.join(file);
    // While it is looked at once, all segments may change twice: that is less than a look follows.
    let (allow, allowed) = std::sync::mpsc::sync_channel(2 * KEPT as usize);
    let write = move || {
        let mut maker = Maker::new();
        for (index, ()) in (0..SEGMENTS).zip(allowed) {
            if index < KEPT {
                fs::write(path("next"), vec![0; SEGMENT as usize]).unwrap();
            } else {
                fs::rename(path(&name((index - KEPT) * SEGMENT)), path("next")).unwrap();
            }
            let file = OpenOptions::new().write(true).open(path("next")).unwrap();
            let header = &maker.files[index as usize][..SEGMENT_HEADER_BYTES as usize];
            file.write_all_at(header, 0).unwrap();
            fs::rename(path("next"), path(&name(index * SEGMENT))).unwrap();
            for _ in 0..3 {
                maker.batch(&[1500]);
                let (at, length) = *maker.batches.last().unwrap();
                let at = at - index * SEGMENT;
                let bytes = &maker.files[index as usize][at as usize..(at + length) as usize];
                file.write_all_at(bytes, at).unwrap();
            }
            write_checkpoint(dir, maker.head);
            maker.files[index as usize] = Vec::new();
            maker.segment();
        }
    };
    std::thread::scope(|scope| {
        // Gone at the end of the looks, whichever: then the writer does not wait for it.
        let allow = allow;
        let writer = scope.spawn(write);
        while !writer.is_finished() {
            while allow.try_send(()).is_ok() {}
            let mut damages = Vec::new();
            Inspector::open(dir, None).unwrap().walk(0, &mut |sight| {
                if let Sight::Damage(damage) = sight {
                    damages.push(damage.to_string());
                }
                ControlFlow::Continue(())
            });
            assert!(damages.is_empty(), "{damages:#?}");
        }
    });
}

#[test]
fn what_is_retired_on_the_way_is_not_called_missing() {
    let maker = Maker::log();
    let dir = maker.write();
    let (mut batches, mut damages) = (0, Vec::new());
    let ending = Inspector::open(dir.path(), None).unwrap().walk(0, &mut |sight| {
        match sight {
            Sight::Batch(..) => {
                batches += 1;
                // While the first segment is read, two go, to be used again.
                for index in if batches == 1 { 0..2 } else { 0..0 } {
                    let path = dir.path().join(name(index * SEGMENT));
                    fs::write(&path, vec![0; SEGMENT as usize]).unwrap();
                    fs::rename(path, dir.path().join(format!("spare-{index}"))).unwrap();
                }
            }
            Sight::Damage(damage) => damages.push(damage.to_string()),
            Sight::Read(_) => {}
        }
        ControlFlow::Continue(())
    });
    let ending = ending.expect("nobody broke off");
    assert!(damages.is_empty() && ending.moved && ending.head == maker.head, "{damages:#?} {ending:?}");
}

#[test]
fn what_lies_far_behind_a_segment_that_is_retired_on_the_way_is_read_all_the_same() {
    // Nothing of the next segment is seen from the end that the first one seems to have.
    let far = 512 << 20;
    let mut maker = Maker::of(far);
    maker.batch(&[10]);
    maker.batch(&[10]);
    maker.segment();
    for _ in 0..4 {
        maker.batch(&[1500]);
    }
    let harmed = maker.batches[3].0 + 200;
    maker.files[1][(harmed - far) as usize] ^= 1;
    let dir = maker.write();
    write_checkpoint(dir.path(), maker.head);
    let mut inspector = Inspector::open(dir.path(), None).unwrap();
    // It becomes a spare, and loses what it had.
    let path = dir.path().join(name(0));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 4096], maker.batches[1].0).unwrap();
    fs::rename(path, dir.path().join("spare-0")).unwrap();
    let (mut batches, mut damages) = (Vec::new(), Vec::new());
    let ending = inspector.walk(0, &mut |sight| {
        match sight {
            Sight::Batch(batch, _) => batches.push(batch.header.base),
            Sight::Damage(damage) => damages.push(damage.byte),
            Sight::Read(_) => {}
        }
        ControlFlow::Continue(())
    });
    assert!(ending.as_ref().is_some_and(|ending| ending.moved && ending.head == maker.head), "{ending:?}");
    let read = [0, 2, 4, 5].map(|index| maker.batches[index].0);
    assert_eq!(batches, read);
    assert_eq!(damages, [maker.batches[3].0 - far + 96], "at its payload");
}

#[test]
fn missing_offsets_are_named() {
    let mut maker = Maker::new();
    maker.batch(&[10, 10]);
    maker.next += 4;
    maker.batch(&[10]);
    maker.next = 3;
    maker.batch(&[10]);
    let (batches, damages, _) = walk(maker.write().path());
    assert_eq!(batches.len(), 3);
    let words: Vec<&str> = damages.iter().map(|damage| &*damage.2).collect();
    let wanted = [
        "before offset 6 of topic id 3, queue 1, 4 offsets from 2 on are missing",
        "offset 3 of topic id 3, queue 1 comes again",
    ];
    assert_eq!(words, wanted);
    assert_eq!(damages[0].1, maker.batches[1].0 + 96, "at its payload");
}
