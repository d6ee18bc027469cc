//! Bytes that a peer sends: frames, headers, messages, properties.

use std::net::SocketAddr;

use bytes::Bytes;
use protocol::frame::FRAME_BYTES_MAX;
use protocol::headers::SendMessage;
use protocol::message::{self, BatchEntries};
use protocol::properties::{self as text, PROPERTIES_BYTES_MAX};
use protocol::sql::Expression;
use protocol::{Command, Frames, Header, Serialize, StoredMessage};

/// However a stream is cut into pieces, the same frames come out of it; what decodes survives the way back.
///
/// `| pieces u8 | stream |`
pub fn frame(data: &[u8]) {
    let Some((pieces, stream)) = data.split_first() else { return };
    let cut = |size: usize| {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        for piece in stream.chunks(size) {
            frames.feed(piece);
            loop {
                match frames.cut() {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(error) => return (found, Some(error)),
                }
            }
        }
        (found, None)
    };
    let (found, error) = cut(usize::from(*pieces) + 1);
    assert_eq!(cut(FRAME_BYTES_MAX), (found.clone(), error), "pieces of {} bytes", usize::from(*pieces) + 1);
    for frame in found {
        let Ok(command) = Command::decode(frame) else { continue };
        if let Ok(again) = Command::decode(Bytes::from(command.encode())) {
            assert_eq!(again, command);
        }
    }
}

/// A JSON header that decodes is the same after the way back, and its requests parse or are refused.
pub fn header_json(data: &[u8]) {
    header(Serialize::Json, data);
}

/// As [`header_json`], in RocketMQ's binary form.
pub fn header_binary(data: &[u8]) {
    header(Serialize::RocketMq, data);
}

fn header(serialize: Serialize, data: &[u8]) {
    let mut header = Header::default();
    if header.decode(serialize, data).is_err() {
        return;
    }
    for code in [10, 310, 320] {
        if let Ok(send) = SendMessage::parse(code, &header.fields) {
            let mut fields = protocol::Fields::default();
            send.push(code, &mut fields);
            assert_eq!(SendMessage::parse(code, &fields).as_ref(), Ok(&send), "code {code}");
        }
    }
    let mut frame = Vec::new();
    header.encode_frame(&mut frame, 0);
    let (kind, range, body) = protocol::frame::split(&frame).expect("what we write is a frame");
    assert!(body.is_empty() && kind == header.serialize);
    let mut again = Header::default();
    again.decode(kind, &frame[range]).expect("what we write decodes");
    assert_eq!(again, header);
    // A header that is decoded into is as good as a new one.
    again.decode(serialize, data).expect("it decoded before");
    assert_eq!(again, header);
}

/// A stored message that decodes is the same after the way back; its description agrees; a batch of a
/// producer is cut into entries or refused.
pub fn message(data: &[u8]) {
    for entry in BatchEntries::new(data).flatten() {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        let again = BatchEntries::new(&bytes).next();
        assert_eq!(again, Some(Ok(entry)));
    }
    for message in message::records(data).flatten() {
        assert!(message.body.len() <= data.len());
    }
    let described = message::describe(data);
    let Ok(message) = StoredMessage::decode(data) else { return };
    let described = described.expect("what decodes can be described");
    assert_eq!((described.topic, described.queue_id), (message.topic, message.queue_id));
    assert!(described.key_hashes().count() <= data.len());
    // Stored ones are shorter; a reader takes what the length field can say.
    if message.properties.len() > PROPERTIES_BYTES_MAX || message.topic.len() > i16::MAX as usize {
        return;
    }
    let mut bytes = vec![0; message.encoded_len()];
    message.encode(&mut bytes);
    let again = StoredMessage::decode(&bytes).expect("what we write decodes");
    // An IPv4 host in IPv6 clothes is written as IPv4, and the host bits follow.
    let plain = |host: SocketAddr| SocketAddr::new(host.ip().to_canonical(), host.port());
    let (born_host, store_host) = (plain(message.born_host), plain(message.store_host));
    let wanted = StoredMessage { sys_flag: again.sys_flag, born_host, store_host, ..message };
    assert_eq!(again, wanted);
    message::stamp(&mut bytes, 1, 2, 3);
    let stamped = StoredMessage::decode(&bytes).expect("a stamp changes no length");
    assert_eq!((stamped.queue_offset, stamped.physical_offset, stamped.store_timestamp), (1, 2, 3));
}

/// Setting and removing a property does that and no more.
///
/// `| name bytes u8 | name | properties |`
pub fn properties(data: &[u8]) {
    let Some((name_bytes, rest)) = data.split_first() else { return };
    let Some((name, rest)) = rest.split_at_checked(usize::from(*name_bytes)) else { return };
    let (Ok(name), Ok(old)) = (std::str::from_utf8(name), std::str::from_utf8(rest)) else { return };
    let pairs = |text: &str| -> Vec<(String, String)> {
        text::iter(text).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    for (name, value) in text::iter(old) {
        assert!(!name.is_empty() && !value.is_empty());
    }
    assert_eq!(text::get(old, name).is_some(), text::iter(old).any(|(known, _)| known == name));
    if name.is_empty() || name.contains(['\u{1}', '\u{2}']) {
        return;
    }
    let others: Vec<_> = pairs(old).into_iter().filter(|(known, _)| known != name).collect();
    let mut new = old.to_owned();
    text::remove(&mut new, name);
    assert_eq!((text::get(&new, name), pairs(&new)), (None, others.clone()));
    text::set(&mut new, name, "value");
    assert_eq!(text::get(&new, name), Some("value"));
    let mut wanted = others;
    wanted.push((name.to_owned(), "value".to_owned()));
    assert_eq!(pairs(&new), wanted);
}

/// An expression that compiles says of a message what it says in parentheses, behind a comment and with the opposite
/// beside it; one that does not names a place in it.
///
/// `| expression | 0 | properties |`
pub fn sql(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let mut part = || std::str::from_utf8(parts.next().unwrap_or_default());
    let (Ok(expression), Ok(properties)) = (part(), part()) else { return };
    let compiled = match Expression::compile(expression) {
        Ok(compiled) => compiled,
        Err(error) => {
            let line = expression.split('\n').nth(error.line - 1).expect("the line is there");
            return assert!((1..=line.chars().count() + 1).contains(&error.column), "{error}");
        }
    };
    let matches = compiled.matches(properties);
    // Longer and deeper than what is just allowed, these may be refused.
    if let Ok(again) = Expression::compile(&format!("-- c\n/**/({expression}\n)")) {
        assert_eq!(again.matches(properties), matches);
    }
    if let Ok(opposite) = Expression::compile(&format!("NOT ({expression}\n)")) {
        assert!(!(matches && opposite.matches(properties)));
    }
}
