//! What a broker registers with a NameServer (PROTOCOL 3.10).

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use super::{BodyError, DataVersion, TopicConfig, decode, encode};

/// Most that a compressed body may unpack to. 64 MiB: a million topics.
pub const UNPACKED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A broker's topics: answer to GET_ALL_TOPIC_CONFIG (21), part of a registration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicConfigTable {
    /// Which state of the table this is.
    pub data_version: DataVersion,
    /// Version of the queue mappings of static topics.
    pub mapping_data_version: DataVersion,
    /// Topics by name.
    pub topic_config_table: BTreeMap<String, TopicConfig>,
    /// Queue mappings of static topics, which we pass on unread.
    pub topic_queue_mapping_detail_map: BTreeMap<String, serde_json::Value>,
    /// As above.
    pub topic_queue_mapping_info_map: BTreeMap<String, serde_json::Value>,
}

/// Body of REGISTER_BROKER (103).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegisterBrokerBody {
    /// Legacy, empty.
    pub filter_server_list: Vec<String>,
    /// The broker's topics.
    pub topic_config_serialize_wrapper: TopicConfigTable,
}

impl RegisterBrokerBody {
    /// Writes the JSON form.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the form that the header's `compressed` names.
    pub fn decode(bytes: &[u8], compressed: bool) -> Result<RegisterBrokerBody, BodyError> {
        if compressed { RegisterBrokerBody::unpack(bytes) } else { decode(bytes) }
    }

    /// Writes the compressed form:
    /// zlib of `| length, DataVersion | count, (length, topic line)… | length, filter servers | 0 |`.
    pub fn pack(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        let table = &self.topic_config_serialize_wrapper;
        put(&mut plain, &encode(&table.data_version));
        put_count(&mut plain, table.topic_config_table.len());
        for topic in table.topic_config_table.values() {
            put(&mut plain, topic.to_text().as_bytes());
        }
        put(&mut plain, &encode(&self.filter_server_list));
        put_count(&mut plain, table.topic_queue_mapping_info_map.len());
        for mapping in table.topic_queue_mapping_info_map.values() {
            put(&mut plain, &encode(mapping));
        }
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::best());
        packer.write_all(&plain).and_then(|()| packer.finish()).expect("packing into memory cannot fail")
    }

    /// Reads the compressed form. The mappings at its end, which older brokers do not send, are
    /// not read: they concern static topics only.
    fn unpack(bytes: &[u8]) -> Result<RegisterBrokerBody, BodyError> {
        let mut plain = Vec::new();
        let mut unpacker = ZlibDecoder::new(bytes).take(UNPACKED_BYTES_MAX as u64 + 1);
        unpacker.read_to_end(&mut plain).map_err(|_| BodyError::Packing)?;
        if plain.len() > UNPACKED_BYTES_MAX {
            return Err(BodyError::Large);
        }
        let mut rest = plain.as_slice();
        let mut table = TopicConfigTable { data_version: decode(take(&mut rest)?)?, ..TopicConfigTable::default() };
        for _ in 0..take_count(&mut rest)? {
            let line = std::str::from_utf8(take(&mut rest)?).map_err(|_| BodyError::Utf8)?;
            let topic = TopicConfig::from_text(line).ok_or_else(|| BodyError::Shape(format!("topic line {line}")))?;
            table.topic_config_table.insert(topic.topic_name.clone(), topic);
        }
        let filter_server_list = decode(take(&mut rest)?)?;
        Ok(RegisterBrokerBody { filter_server_list, topic_config_serialize_wrapper: table })
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = i32::try_from(count).expect("no registration of ours has 2 GiB");
    out.extend_from_slice(&count.to_be_bytes());
}

fn take_count(rest: &mut &[u8]) -> Result<usize, BodyError> {
    let (count, behind) = rest.split_first_chunk::<4>().ok_or(BodyError::Packing)?;
    *rest = behind;
    usize::try_from(i32::from_be_bytes(*count)).map_err(|_| BodyError::Packing)
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BodyError> {
    let count = take_count(rest)?;
    let (bytes, behind) = rest.split_at_checked(count).ok_or(BodyError::Packing)?;
    *rest = behind;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    fn body() -> RegisterBrokerBody {
        let mut body = RegisterBrokerBody::default();
        let table = &mut body.topic_config_serialize_wrapper;
        table.data_version = DataVersion { counter: 1, state_version: 2, timestamp: 3 };
        for name in ["T", "TBW102"] {
            table.topic_config_table.insert(name.into(), TopicConfig::new(name, 8, 7));
        }
        body
    }

    #[test]
    fn both_forms_say_the_same() {
        let body = body();
        assert_eq!(RegisterBrokerBody::decode(&body.encode(), false), Ok(body.clone()));
        assert_eq!(RegisterBrokerBody::decode(&body.pack(), true), Ok(body.clone()));
        assert_eq!(
            String::from_utf8(RegisterBrokerBody::default().encode()).unwrap(),
            r#"{"filterServerList":[],"topicConfigSerializeWrapper":{"dataVersion":{"counter":0,"stateVersion":0,"timestamp":0},"mappingDataVersion":{"counter":0,"stateVersion":0,"timestamp":0},"topicConfigTable":{},"topicQueueMappingDetailMap":{},"topicQueueMappingInfoMap":{}}}"#
        );
        // A table alone, as brokers before 3.0.11 send it.
        let table = body.topic_config_serialize_wrapper;
        assert_eq!(decode(&encode(&table)), Ok(table));
    }

    #[test]
    fn damaged_packing_is_refused() {
        let packed = body().pack();
        for length in 0..packed.len() {
            assert!(RegisterBrokerBody::decode(&packed[..length], true).is_err());
        }
        let mut plain = Vec::new();
        ZlibDecoder::new(packed.as_slice()).read_to_end(&mut plain).unwrap();
        let mut noise = Noise::new(9);
        for _ in 0..5_000 {
            let mut damaged = plain.clone();
            let at = noise.below(damaged.len());
            damaged[at] = noise.next() as u8;
            let mut packer = ZlibEncoder::new(Vec::new(), Compression::fast());
            packer.write_all(&damaged).unwrap();
            let _ = RegisterBrokerBody::decode(&packer.finish().unwrap(), true);
        }
        let mut bomb = ZlibEncoder::new(Vec::new(), Compression::fast());
        bomb.write_all(&vec![0; UNPACKED_BYTES_MAX + 1]).unwrap();
        assert_eq!(RegisterBrokerBody::decode(&bomb.finish().unwrap(), true), Err(BodyError::Large));
    }
}
