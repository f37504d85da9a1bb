//! Asks an application whether it lives and what it serves.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::application::{Application, Service};

/// For one question with its answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longer answers are cut off.
const ANSWER_BYTES: u64 = 1024 * 1024;
/// Services that one application can have.
const SERVICES: usize = 10_000;

/// What the application serves now; an error says why it is not alive.
pub(super) async fn ask(application: &Application) -> Result<BTreeSet<Service>, String> {
    match timeout(TIMEOUT, TcpStream::connect(&application.endpoint)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(format!("{}: {error}", application.endpoint)),
        Err(_) => {
            return Err(format!(
                "{}: no connection in {TIMEOUT:?}",
                application.endpoint
            ));
        }
    }
    if let Some((authority, path)) = &application.health {
        get(authority, path).await?;
    }
    let mut services: BTreeSet<Service> = application.services.iter().cloned().collect();
    if let Some((authority, path)) = &application.spring_actuator {
        get(authority, &format!("{path}/health")).await?;
        if application.services.is_empty() {
            let info = get(authority, &format!("{path}/info")).await?;
            let name = application_name(&info)
                .ok_or_else(|| format!("http://{authority}{path}/info has no app.name"))?;
            services.insert(Service {
                name,
                ..Service::default()
            });
        }
    }
    if let Some(authority) = &application.dubbo_qos {
        let listed = get(authority, "/ls").await?;
        services.extend(exported(&listed));
    }
    Ok(services)
}

/// The body of an answer of status 2xx.
async fn get(authority: &str, path: &str) -> Result<String, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(authority).await?;
        let request = format!(
            "GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = match timeout(TIMEOUT, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("http://{authority}{path}: {error}")),
        Err(_) => {
            return Err(format!(
                "http://{authority}{path}: no answer in {TIMEOUT:?}"
            ));
        }
    };
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status.len() == 3 && status.starts_with('2') {
        Ok(body.to_owned())
    } else {
        let first = head.lines().next().unwrap_or_default();
        Err(format!("http://{authority}{path}: {first}"))
    }
}

/// `app.name` or `build.name` of Spring Boot's `info`, in the case that Spring Cloud registers.
fn application_name(info: &str) -> Option<String> {
    // A server may answer HTTP/1.1 in chunks all the same: the document is what is between the braces.
    let document = info.get(info.find('{')?..=info.rfind('}')?)?;
    let info: Value = serde_json::from_str(document).ok()?;
    let name = ["/app/name", "/build/name"]
        .into_iter()
        .find_map(|path| info.pointer(path)?.as_str())?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// The services that Dubbo's QoS command `ls` lists: the first column of the table of providers holds
/// `[group/]interface[:version]`.
fn exported(listed: &str) -> BTreeSet<Service> {
    listed
        .lines()
        .take_while(|line| !line.contains("As Consumer side"))
        .filter_map(|line| line.trim().strip_prefix('|')?.split('|').next())
        .map(str::trim)
        .filter_map(service)
        .take(SERVICES)
        .collect()
}

fn service(key: &str) -> Option<Service> {
    // Dubbo's own services are shown as `DubboInternal - …`, the heading has blanks too.
    if key.is_empty() || key.contains(char::is_whitespace) {
        return None;
    }
    let (group, rest) = key.split_once('/').unwrap_or(("", key));
    let (name, version) = rest.split_once(':').unwrap_or((rest, ""));
    let well_formed = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '$'));
    if name.is_empty() || !well_formed || name.starts_with("org.apache.dubbo.metadata.") {
        return None;
    }
    let version = if version == "0.0.0" { "" } else { version };
    Some(Service {
        name: name.to_owned(),
        version: version.to_owned(),
        group: group.to_owned(),
        ..Service::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dubbos_list_of_exported_services() {
        let listed = "As Provider side:\n\
            +----------------------------------------------------+---+\n\
            |               Provider Service Name                |PUB|\n\
            +----------------------------------------------------+---+\n\
            |DubboInternal - shop/org.apache.dubbo.metadata.MetadataService:1.0.0|   |\n\
            +----------------------------------------------------+---+\n\
            |               blue/com.foo.Bar:1.0.0               |zookeeper-A(Y)|\n\
            |com.foo.Plain|N|\n\
            As Consumer side:\n\
            |com.foo.NotMine|1|\n";
        let found: Vec<(String, String, String)> = exported(listed)
            .into_iter()
            .map(|s| (s.name, s.version, s.group))
            .collect();
        let expected = [("com.foo.Bar", "1.0.0", "blue"), ("com.foo.Plain", "", "")];
        let expected = expected.map(|(n, v, g)| (n.to_owned(), v.to_owned(), g.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn reads_the_name_of_a_spring_application() {
        assert_eq!(
            application_name("{\"build\":{\"name\":\"Orders\"}}").as_deref(),
            Some("orders")
        );
        assert_eq!(application_name("}{"), None);
        assert_eq!(application_name("{}"), None);
    }
}
