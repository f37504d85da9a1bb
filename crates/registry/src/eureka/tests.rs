//! What servers and clients write, in both forms, and what is not theirs.

use proptest::prelude::*;

use super::info::{Action, Info, Lease};
use super::*;

const JSON: &str = r#"{"applications":{"versions__delta":"1","apps__hashcode":"OUT_OF_SERVICE_1_UP_1_","application":[{"name":"SHOP","instance":[{"instanceId":"h1:shop:8080","hostName":"h1","app":"SHOP","ipAddr":"10.0.0.1","status":"UP","overriddenStatus":"UNKNOWN","port":{"$":8080,"@enabled":"true"},"securePort":{"$":443,"@enabled":"false"},"countryId":1,"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90,"registrationTimestamp":1795379714704,"lastRenewalTimestamp":0,"evictionTimestamp":0,"serviceUpTimestamp":0},"metadata":{"management.port":"8081"},"homePageUrl":"http://h1:8080/","vipAddress":"shop","secureVipAddress":"shop","isCoordinatingDiscoveryServer":"false","lastUpdatedTimestamp":"1795379714704","lastDirtyTimestamp":"1795379714000","actionType":"ADDED"}]},{"name":"CART","instance":{"instanceId":"c","app":"CART","ipAddr":"10.0.0.2","status":"OUT_OF_SERVICE","overriddenStatus":"OUT_OF_SERVICE","port":{"$":80,"@enabled":"false"},"securePort":{"$":"8443","@enabled":"true"},"metadata":{"@class":"java.util.Collections$EmptyMap"}}}]}}"#;
const XML: &str = r#"<?xml version="1.0"?><applications><versions__delta>1</versions__delta><apps__hashcode>OUT_OF_SERVICE_1_UP_1_</apps__hashcode><application><name>SHOP</name><instance><instanceId>h1:shop:8080</instanceId><hostName>h1</hostName><app>SHOP</app><ipAddr>10.0.0.1</ipAddr><status>UP</status><overriddenstatus>UNKNOWN</overriddenstatus><port enabled="true">8080</port><securePort enabled="false">443</securePort><countryId>1</countryId><dataCenterInfo class="com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"><name>MyOwn</name></dataCenterInfo><leaseInfo><renewalIntervalInSecs>30</renewalIntervalInSecs><durationInSecs>90</durationInSecs><registrationTimestamp>1795379714704</registrationTimestamp></leaseInfo><metadata><management.port>8081</management.port></metadata><homePageUrl>http://h1:8080/</homePageUrl><vipAddress>shop</vipAddress><secureVipAddress>shop</secureVipAddress><lastUpdatedTimestamp>1795379714704</lastUpdatedTimestamp><lastDirtyTimestamp>1795379714000</lastDirtyTimestamp><actionType>ADDED</actionType></instance></application>
<application><name>CART</name><instance><instanceId>c</instanceId><app>CART</app><ipAddr>10.0.0.2</ipAddr><status>OUT_OF_SERVICE</status><overriddenstatus>OUT_OF_SERVICE</overriddenstatus><port enabled="false">80</port><securePort enabled="true">8443</securePort><metadata class="java.util.Collections$EmptyMap"/></instance></application></applications>"#;

fn read(format: Format, text: &str) -> Result<(String, Vec<Info>), Malformed> {
    let mut content = format.read(text.as_bytes(), "applications")?;
    let read = Applications::of(&mut content);
    let infos = read.instances.iter().map(|(_, value)| Info::parse(value));
    Ok((read.hash, infos.collect::<Result<_, _>>()?))
}

#[test]
fn json_and_xml_say_the_same() -> Result<(), Malformed> {
    let (hash_of_json, of_json) = read(Format::Json, JSON)?;
    let (hash_of_xml, of_xml) = read(Format::Xml, XML)?;
    assert_eq!((&hash_of_json, &of_json), (&hash_of_xml, &of_xml));
    assert_eq!(hash(of_json.iter().map(|info| info.status)), hash_of_json);
    let [shop, cart] = of_json.as_slice() else {
        panic!("{of_json:?}");
    };
    assert_eq!(shop.port, Some(8080));
    assert_eq!(shop.action, Some(Action::Added));
    assert_eq!(shop.last_dirty_ms, 1_795_379_714_000);
    assert_eq!((cart.port, cart.secure_port), (None, Some(8443)));

    let read = model::instance(shop, shop.status)?;
    assert_eq!(read.service.to_string(), "springcloud/shop");
    assert_eq!(
        (&*read.address, read.port, read.healthy),
        ("10.0.0.1", 8080, true)
    );
    assert!(!model::instance(cart, cart.status)?.healthy);
    for info in &of_json {
        // The times are a server's own.
        let mut expected = info.clone();
        expected.action = None;
        expected.lease = Lease::default();
        (expected.last_dirty_ms, expected.last_updated_ms) = (0, 0);
        for name in ["vipAddress", "secureVipAddress"] {
            expected.texts.insert(name, info.app.to_ascii_lowercase());
        }
        let mut again = model::info(&model::instance(info, info.status)?);
        again.lease = Lease::default();
        assert_eq!(again, expected);
    }
    Ok(())
}

#[test]
fn the_zone_of_amazons_data_centres_is_the_instances() -> Result<(), Malformed> {
    let amazon = r#""dataCenterInfo":{"@class":"com.netflix.appinfo.AmazonInfo","name":"Amazon","metadata":{"availability-zone":"us-east-1c"}}"#;
    let own = r#""dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"}"#;
    let (_, infos) = read(Format::Json, &JSON.replace(own, amazon))?;
    let read = model::instance(&infos[0], infos[0].status)?;
    assert_eq!(read.locality(), "/us-east-1c");
    Ok(())
}

#[test]
fn what_is_written_is_read_again_in_both_forms() -> Result<(), Malformed> {
    let (hash, mut infos) = read(Format::Json, JSON)?;
    if let Some(info) = infos.first_mut() {
        info.metadata
            .insert("a".to_owned(), "<&>\"'\u{1F600}".to_owned());
    }
    infos.sort_by(|a, b| a.app.cmp(&b.app));
    let apps: BTreeMap<String, Vec<Info>> = infos
        .iter()
        .map(|info| (info.app.clone(), vec![info.clone()]))
        .collect();
    for format in [Format::Json, Format::Xml] {
        let written = format.write("applications", applications(&apps, &hash, format));
        let text = String::from_utf8_lossy(&written);
        assert_eq!(
            read(format, &text)?,
            (hash.clone(), infos.clone()),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn an_override_counts_unless_the_instance_says_that_it_is_down() {
    use Status::{Down, OutOfService, Starting, Unknown, Up};
    for (own, overridden, effective) in [
        (Up, Unknown, Up),
        (Up, OutOfService, OutOfService),
        (OutOfService, Up, Up),
        (Down, Up, Down),
        (Starting, OutOfService, Starting),
    ] {
        assert_eq!(
            model::effective(own, overridden),
            effective,
            "{own:?} {overridden:?}"
        );
    }
}

#[test]
fn says_what_is_wrong_with_a_document() {
    for (text, why) in [
        ("<a>", "ends too soon"),
        ("<a></b>", "b"),
        (
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
            "document type",
        ),
        ("<a>&x;</a>", "entity"),
        ("<b/>", "applications"),
        (&"<a>".repeat(100), "too deeply"),
    ] {
        let error = Format::Xml.read(text.as_bytes(), "applications");
        let error = error.expect_err(text).to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(text in "(<[a-z$@!?]{0,3}[ =\"'/]{0,4}>?|&[a-z#0-9]{0,3};?|\\PC|instance|port|/){0,40}") {
        for format in [Format::Json, Format::Xml] {
            if let Ok(mut content) = format.read(text.as_bytes(), "a") {
                let applications = Applications::of(&mut content);
                for (_, value) in &applications.instances {
                    let _ = Info::parse(value);
                }
            }
        }
    }

    #[test]
    fn any_instance_is_read_or_refused(value in json_value()) {
        if let Ok(instance) = Info::parse(&value).and_then(|info| model::registered(&info, 1)) {
            let _ = model::info(&instance).to_value(Format::Xml);
        }
    }
}

/// Objects with the fields that are looked at, and anything in them.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[0-9]{0,6}".prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "instanceId",
        "hostName",
        "app",
        "ipAddr",
        "status",
        "port",
        "securePort",
        "$",
        "@enabled",
        "metadata",
        "leaseInfo",
        "durationInSecs",
        "lastDirtyTimestamp",
        "overriddenstatus",
    ]);
    leaf.prop_recursive(3, 40, 12, move |inner| {
        prop::collection::vec((names.clone(), inner), 0..12).prop_map(|fields| {
            Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
        })
    })
}
