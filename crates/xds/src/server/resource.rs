//! Resources in their encoded form, and responses made of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost::{Message, Name};

/// Field numbers of `DiscoveryResponse` and `Any`.
const RESPONSE_VERSION_INFO: u32 = 1;
const RESPONSE_RESOURCES: u32 = 2;
const RESPONSE_TYPE_URL: u32 = 4;
const RESPONSE_NONCE: u32 = 5;
const RESPONSE_CONTROL_PLANE: u32 = 6;
const CONTROL_PLANE_IDENTIFIER: u32 = 1;
const ANY_TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;

/// One resource, encoded as it stands in a response.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its name, which subscriptions use.
    pub name: Arc<str>,
    /// The field `resources` of a `DiscoveryResponse`: key, length and `Any`.
    encoded: Bytes,
    /// Where the message itself lies in `encoded`.
    value_at: usize,
    hash: u64,
}

impl Resource {
    /// Encodes a message under its name.
    pub fn new<M: Message + Name>(name: impl Into<Arc<str>>, message: &M) -> Resource {
        let type_url = M::type_url();
        let value_len = message.encoded_len();
        let any_len = string_len(ANY_TYPE_URL, &type_url)
            + key_len(ANY_VALUE)
            + encoded_len_varint(value_len as u64)
            + value_len;
        let mut encoded = BytesMut::with_capacity(any_len + 8);
        encode_key(RESPONSE_RESOURCES, WireType::LengthDelimited, &mut encoded);
        encode_varint(any_len as u64, &mut encoded);
        put_string(ANY_TYPE_URL, &type_url, &mut encoded);
        encode_key(ANY_VALUE, WireType::LengthDelimited, &mut encoded);
        encode_varint(value_len as u64, &mut encoded);
        let value_at = encoded.len();
        message.encode_raw(&mut encoded);
        let mut hasher = DefaultHasher::new();
        encoded.hash(&mut hasher);
        Resource {
            name: name.into(),
            encoded: encoded.freeze(),
            value_at,
            hash: hasher.finish(),
        }
    }

    /// The message's own bytes.
    pub fn value(&self) -> Bytes {
        self.encoded.slice(self.value_at..)
    }

    /// Equal for equal content.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Bytes in a response.
    pub fn size(&self) -> usize {
        self.encoded.len()
    }
}

/// All resources of a type that a class of clients may see, sorted by name.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    resources: Vec<Resource>,
    hash: u64,
}

impl ResourceSet {
    /// Sorts resources by name. Of two with one name the first stays.
    pub fn new(mut resources: Vec<Resource>) -> ResourceSet {
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        resources.dedup_by(|b, a| a.name == b.name);
        let hash = combined_hash(resources.iter());
        ResourceSet { resources, hash }
    }

    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&Resource> {
        let at = self
            .resources
            .binary_search_by(|resource| resource.name.as_ref().cmp(name))
            .ok()?;
        self.resources.get(at)
    }

    /// All resources, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Resource> {
        self.resources.iter()
    }

    /// Number of resources.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Equal for equal content.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// One hash for names and contents of resources in order.
pub(super) fn combined_hash<'a>(resources: impl Iterator<Item = &'a Resource>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for resource in resources {
        resource.name.hash(&mut hasher);
        resource.hash.hash(&mut hasher);
    }
    hasher.finish()
}

/// A `DiscoveryResponse`, encoded: a header of its own and resources that are shared.
#[derive(Debug, Clone)]
pub struct Response {
    head: Bytes,
    resources: Vec<Bytes>,
    /// Number of resources that it holds.
    pub count: usize,
}

impl Response {
    pub(super) fn new<'a>(
        type_url: &str,
        version: &str,
        nonce: &str,
        control_plane: &str,
        resources: impl Iterator<Item = &'a Resource>,
    ) -> Response {
        let mut head = BytesMut::new();
        put_string(RESPONSE_VERSION_INFO, version, &mut head);
        put_string(RESPONSE_TYPE_URL, type_url, &mut head);
        put_string(RESPONSE_NONCE, nonce, &mut head);
        if !control_plane.is_empty() {
            encode_key(RESPONSE_CONTROL_PLANE, WireType::LengthDelimited, &mut head);
            encode_varint(
                string_len(CONTROL_PLANE_IDENTIFIER, control_plane) as u64,
                &mut head,
            );
            put_string(CONTROL_PLANE_IDENTIFIER, control_plane, &mut head);
        }
        let resources: Vec<Bytes> = resources.map(|resource| resource.encoded.clone()).collect();
        Response {
            head: head.freeze(),
            count: resources.len(),
            resources,
        }
    }

    /// Bytes of the whole message.
    pub fn size(&self) -> usize {
        self.head.len() + self.resources.iter().map(Bytes::len).sum::<usize>()
    }

    /// Writes the message.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.head);
        for resource in &self.resources {
            buffer.put_slice(resource);
        }
    }
}

fn string_len(field: u32, text: &str) -> usize {
    key_len(field) + encoded_len_varint(text.len() as u64) + text.len()
}

fn put_string(field: u32, text: &str, buffer: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, buffer);
    encode_varint(text.len() as u64, buffer);
    buffer.put_slice(text.as_bytes());
}
