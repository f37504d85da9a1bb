//! x
use std::collections::BTreeSet; use api::google::protobuf::Any;
#[derive(Clone,Copy,Debug,PartialEq,Eq)] pub enum ResourceType { Cluster, Endpoint, Listener, Route }
pub enum Event { Connected, Disconnected{reason:String}, Response{kind:ResourceType, version:String, nonce:String, resources:Vec<Any>} }
#[derive(Clone)] pub struct Handle;
impl Handle { pub fn subscribe(&self,_:ResourceType,_:Option<BTreeSet<String>>){} pub fn ack(&self,_:ResourceType,_:&str,_:&str){} pub fn nack(&self,_:ResourceType,_:&str,_:String){} }
pub struct ClientConfig { pub endpoints: Vec<String>, pub node: api::envoy::config::core::v3::Node, pub connect_timeout: std::time::Duration }
pub fn spawn(_:ClientConfig, _: impl Fn(Event)+Send+'static)->Handle { Handle }
