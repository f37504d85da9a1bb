//! What a session server pushes: for one id, everything that is published in each data centre. Arbitrary bytes are an error, and
//! never more memory than the limit.

use std::collections::BTreeMap;
use std::io::Read;

use api::sofaregistry::session::v1::{
    DataBoxes, MultiReceivedData, MultiSegmentData, ReceivedData, ReceivedDataBody,
};
use flate2::read::GzDecoder;
use prost::Message;

use crate::naming::Malformed;
use crate::sofaregistry::DataInfoId;

/// The compression that subscriptions ask for.
pub(super) const ACCEPTED: &str = "gzip";

/// By zone, what is published there.
pub(super) type Zones = BTreeMap<String, Vec<String>>;

/// A push.
#[derive(Debug, PartialEq)]
pub(super) struct Push {
    pub(super) id: DataInfoId,
    /// The server said all data centres that there are.
    pub(super) is_of_all: bool,
    pub(super) segments: Vec<Segment>,
}

/// What one data centre has.
#[derive(Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) version: i64,
    /// What is published there, or why that cannot be read.
    pub(super) zones: Result<Zones, Malformed>,
}

/// Reads a push by the name of its class; `None` for what is no push of publications.
pub(super) fn decode(class: &str, content: &[u8], limit: usize) -> Result<Option<Push>, Malformed> {
    let name = class.rsplit('.').next().unwrap_or_default();
    let wrong = |error: prost::DecodeError| Malformed::new(format!("a {name}: {error}"));
    let push = match name {
        "ReceivedDataPb" => single(ReceivedData::decode(content).map_err(wrong)?, limit),
        "MultiReceivedDataPb" => multi(MultiReceivedData::decode(content).map_err(wrong)?, limit),
        _ => return Ok(None),
    };
    Ok(Some(push))
}

fn single(push: ReceivedData, limit: usize) -> Push {
    let zones = if push.encoding.is_empty() {
        Ok(zones(push.data))
    } else {
        let claimed = usize::try_from(push.origin_body_size).unwrap_or(usize::MAX);
        if claimed > limit {
            Err(too_large(claimed, limit))
        } else {
            decompress(&push.encoding, &push.body, limit)
        }
    };
    Push {
        id: DataInfoId {
            data_id: push.data_id,
            instance_id: push.instance_id,
            group: push.group,
        },
        is_of_all: false,
        segments: vec![Segment {
            name: push.segment,
            version: push.version,
            zones,
        }],
    }
}

fn multi(push: MultiReceivedData, limit: usize) -> Push {
    let segment = |(name, data): (String, MultiSegmentData)| Segment {
        name,
        version: data.version,
        zones: if data.encoding.is_empty() {
            Ok(zones(data.unzip_data))
        } else {
            decompress(&data.encoding, &data.zip_data, limit)
        },
    };
    Push {
        id: DataInfoId {
            data_id: push.data_id,
            instance_id: push.instance_id,
            group: push.group,
        },
        is_of_all: true,
        segments: push.multi_data.into_iter().map(segment).collect(),
    }
}

fn zones(data: BTreeMap<String, DataBoxes>) -> Zones {
    let texts = |boxes: DataBoxes| boxes.data.into_iter().map(|of| of.data).collect();
    data.into_iter()
        .map(|(zone, boxes)| (zone, texts(boxes)))
        .collect()
}

fn decompress(encoding: &str, body: &[u8], limit: usize) -> Result<Zones, Malformed> {
    if encoding != ACCEPTED {
        let message = format!("compressed with {encoding}, which was not asked for");
        return Err(Malformed::new(message));
    }
    let mut plain = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    GzDecoder::new(body)
        .take(most)
        .read_to_end(&mut plain)
        .map_err(|error| Malformed::new(format!("not {encoding}: {error}")))?;
    if plain.len() > limit {
        return Err(too_large(plain.len(), limit));
    }
    let body = ReceivedDataBody::decode(plain.as_slice());
    let body = body.map_err(|error| Malformed::new(format!("a decompressed body: {error}")))?;
    Ok(zones(body.data))
}

fn too_large(bytes: usize, limit: usize) -> Malformed {
    Malformed::new(format!("{bytes} bytes or more, the limit is {limit}"))
}

/// The id of a push of which only the beginning is there: servers write it first.
pub(super) fn id_of_beginning(mut bytes: &[u8]) -> Option<DataInfoId> {
    let mut parts: [Option<String>; 3] = [None, None, None];
    while parts.iter().any(Option::is_none) {
        let (tag, rest) = bytes.split_first()?;
        // Fields 1 to 3, each a length and that many bytes.
        let index = match tag {
            0x0a => 0,
            0x12 => 1,
            0x1a => 2,
            _ => return None,
        };
        bytes = rest;
        let length = prost::encoding::decode_varint(&mut bytes).ok()?;
        let (text, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
        *parts.get_mut(index)? = Some(String::from_utf8(text.to_vec()).ok()?);
        bytes = rest;
    }
    let [data_id, group, instance_id] = parts;
    Some(DataInfoId {
        data_id: data_id?,
        instance_id: instance_id?,
        group: group?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use api::sofaregistry::session::v1::DataBox;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    const CLASS: &str = "com.alipay.sofa.registry.common.model.client.pb.ReceivedDataPb";
    const MULTI_CLASS: &str = "com.alipay.sofa.registry.common.model.client.pb.MultiReceivedDataPb";

    fn boxes(data: &[&str]) -> BTreeMap<String, DataBoxes> {
        let boxes = data.iter().map(|data| DataBox {
            data: (*data).to_owned(),
        });
        let boxes = DataBoxes {
            data: boxes.collect(),
        };
        [("Z1".to_owned(), boxes)].into_iter().collect()
    }

    fn gzip(data: &[&str]) -> std::io::Result<Vec<u8>> {
        let body = ReceivedDataBody { data: boxes(data) };
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&body.encode_to_vec())?;
        encoder.finish()
    }

    fn compressed() -> std::io::Result<ReceivedData> {
        Ok(ReceivedData {
            data_id: "a:1.0@DEFAULT".into(),
            group: "SOFA".into(),
            instance_id: "I".into(),
            segment: "dc".into(),
            encoding: "gzip".into(),
            body: gzip(&["10.0.0.1:1", "10.0.0.2:1"])?,
            version: 7,
            ..ReceivedData::default()
        })
    }

    #[test]
    fn compressed_pushes_are_read_up_to_the_limit() -> std::io::Result<()> {
        let bytes = compressed()?.encode_to_vec();
        let push = decode(CLASS, &bytes, 1000).ok().flatten();
        let push = push.expect("well-formed");
        assert_eq!(push.id.to_string(), "a:1.0@DEFAULT#@#I#@#SOFA");
        let zones = push.segments[0].zones.as_ref().expect("well-formed");
        assert_eq!(zones["Z1"], ["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(id_of_beginning(&bytes), Some(push.id));

        let small = decode(CLASS, &bytes, 20).ok().flatten();
        let zones = &small.expect("well-formed").segments[0].zones;
        let error = zones.as_ref().expect_err("too large").to_string();
        assert!(error.contains("the limit is 20"), "{error}");
        let claims = ReceivedData {
            origin_body_size: i32::MAX,
            ..compressed()?
        };
        let claims = decode(CLASS, &claims.encode_to_vec(), 1000).ok().flatten();
        assert!(claims.expect("well-formed").segments[0].zones.is_err());
        Ok(())
    }

    #[test]
    fn a_push_of_several_data_centres_has_each_by_itself() -> std::io::Result<()> {
        let plain = MultiSegmentData {
            version: 3,
            unzip_data: boxes(&["10.0.0.1:1"]),
            ..MultiSegmentData::default()
        };
        let zipped = MultiSegmentData {
            version: 4,
            encoding: "gzip".into(),
            zip_data: gzip(&["10.0.0.2:1"])?,
            ..MultiSegmentData::default()
        };
        let strange = MultiSegmentData {
            encoding: "zstd".into(),
            ..MultiSegmentData::default()
        };
        let segments = [("a", plain), ("b", zipped), ("c", strange)];
        let push = MultiReceivedData {
            data_id: "x@DEFAULT".into(),
            multi_data: segments
                .into_iter()
                .map(|(name, data)| (name.to_owned(), data))
                .collect(),
            ..MultiReceivedData::default()
        };
        let push = decode(MULTI_CLASS, &push.encode_to_vec(), 1000)
            .ok()
            .flatten();
        let push = push.expect("well-formed");
        let read: Vec<(&str, i64, bool)> = push
            .segments
            .iter()
            .map(|s| (s.name.as_str(), s.version, s.zones.is_ok()))
            .collect();
        assert_eq!(read, [("a", 3, true), ("b", 4, true), ("c", 0, false)]);
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            // What is refused is refused with a reason.
            let _ = (decode(CLASS, &bytes, 100), decode(MULTI_CLASS, &bytes, 100));
            let _ = (decompress(ACCEPTED, &bytes, 100), id_of_beginning(&bytes));
            let mut real = compressed().map(|push| push.encode_to_vec()).unwrap_or_default();
            real.truncate(cut);
            let _ = (decode(CLASS, &real, 100), id_of_beginning(&real));
        }
    }
}
