//! The stock clients of three generations.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use registry::InstanceRef;
use testkit::apps::epoch_millis;
use testkit::net::Loopback;

use crate::{Client, Facade, SPRING, orders};

const STOCK: &str = "10.9.0.2:80/DEFAULT/1.0{preserved.register.source=SPRING_CLOUD}";

fn write(folder: &Path, ports: &[u16]) -> Result<()> {
    let instances: Vec<String> = ports
        .iter()
        .map(|port| format!("{{address: 10.9.0.2, port: {port}}}"))
        .collect();
    let text = format!(
        "services:\n- {{protocol: springcloud, name: stock, instances: [{}]}}\n",
        instances.join(", ")
    );
    std::fs::write(folder.join("new"), text)?;
    std::fs::rename(folder.join("new"), folder.join("stock.yaml"))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_every_generation_see_each_other_and_all_registries() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    write(&files, &[80])?;
    let loopback = Loopback::claim()?;
    let mut facade = Facade::start(loopback.address(1, 8848), &files, None).await?;
    let server = facade.address;
    let start = |module: &'static str, flags: &'static [&'static str]| {
        let folder = folder.path().to_owned();
        std::thread::spawn(move || Client::start(module, server, flags, &folder))
    };
    let starting = [
        start("nacos", &[]),
        start("nacos1", &[]),
        start("nacos3", &[]),
        start("nacos", &["--namespace", "dev"]),
    ];
    let mut started = Vec::new();
    for client in starting {
        started.push(client.join().map_err(|_| anyhow::anyhow!("no client"))??);
    }
    let [two, one, three, dev] = started.as_mut_slice() else {
        anyhow::bail!("four clients");
    };
    for client in [&mut *one, &mut *two, &mut *three] {
        client.wait("status", "UP")?;
        client.done("subscribe stock")?;
        client.done("subscribe shop")?;
        client.pushed("seen stock", STOCK)?;
    }
    three.done("watch * DEFAULT_GROUP")?;

    // What another registry holds is pushed.
    let mut took: [Vec<u64>; 3] = Default::default();
    for port in 81..86 {
        write(&files, &[80, port])?;
        let expected = format!("{STOCK} 10.9.0.2:{port}/DEFAULT/1.0{SPRING}");
        let in_hub = [
            "10.9.0.2:80/100/true".to_owned(),
            format!("10.9.0.2:{port}/100/true"),
        ];
        let in_hub = in_hub.each_ref().map(String::as_str);
        facade.wait("springcloud", "stock", &in_hub).await?;
        let known = epoch_millis()?;
        for (client, took) in [&mut *one, &mut *two, &mut *three]
            .into_iter()
            .zip(&mut took)
        {
            let pushed = client.pushed("seen stock", &expected)?;
            took.push(pushed.saturating_sub(known));
        }
    }
    eprintln!("change in the hub -> listener of 1.4, 2.5, 3.0: {took:?} ms");
    let done = facade.registry.register(vec![orders(80)]).await?;
    three.wait(
        "watched",
        "{DEFAULT_GROUP/orders=there, DEFAULT_GROUP/stock=there}",
    )?;
    assert_eq!(two.ask("services")?, "orders stock");
    assert_eq!(one.ask("services")?, "orders stock");
    let id = &done.result.first().context("no id")?.id;
    let reference = InstanceRef::new("springcloud", "orders", id);
    facade.registry.deregister(vec![reference]).await?;
    three.wait("watched", "{DEFAULT_GROUP/stock=there}")?;

    // What clients register is there as they said it, for all of them.
    two.done("register shop 10.0.0.2 80 weight=2.5 cluster=east m.zone=e m.Odd=<&>")?;
    one.done("register shop 10.0.0.1 80 m.v=1")?;
    dev.done("register shop 10.0.0.9 80")?;
    let first = "10.0.0.1:80/DEFAULT/1.0{v=1}";
    let second = "10.0.0.2:80/east/2.5{Odd=<&>, zone=e}";
    for client in [&mut *one, &mut *two, &mut *three] {
        client.pushed("seen shop", &format!("{first} {second}"))?;
        assert_eq!(client.ask("list shop")?, format!("{first} {second}"));
    }
    let shops = ["10.0.0.1:80/100/true", "10.0.0.2:80/250/true"];
    let all = [&shops[..], &["10.0.0.9:80/100/true"]].concat();
    facade.wait("http", "shop", &all).await?;
    // A namespace of its own.
    assert_eq!(dev.ask("list shop")?, "10.0.0.9:80/DEFAULT/1.0{}");
    dev.done("deregister shop 10.0.0.9 80")?;

    // Only the weight, only the metadata.
    two.done("register shop 10.0.0.2 80 weight=1 cluster=east m.zone=e")?;
    let second = "10.0.0.2:80/east/1.0{zone=e}";
    three.pushed("seen shop", &format!("{first} {second}"))?;
    two.done("register shop 10.0.0.2 80 weight=1 cluster=east m.zone=w")?;
    let second = "10.0.0.2:80/east/1.0{zone=w}";
    one.pushed("seen shop", &format!("{first} {second}"))?;
    let again = "10.0.0.3:80/DEFAULT/1.0{}";
    // A connection has one instance of a service, unless it says all at once.
    three.done("register shop 10.0.0.4 80")?;
    three.done("register shop 10.0.0.3 80")?;
    two.pushed("seen shop", &format!("{first} {second} {again}"))?;
    three.done("deregister shop 10.0.0.3 80")?;
    three.done("batch shop 10.0.0.5:80,10.0.0.6:80")?;
    let batch = "10.0.0.5:80/DEFAULT/1.0{} 10.0.0.6:80/DEFAULT/1.0{}";
    two.pushed("seen shop", &format!("{first} {second} {batch}"))?;
    three.done("unbatch shop 10.0.0.5:80")?;
    let rest = "10.0.0.6:80/DEFAULT/1.0{}";
    one.pushed("seen shop", &format!("{first} {second} {rest}"))?;
    // One that stays.
    two.done("register depot 10.0.0.7 80 ephemeral=false")?;
    assert_eq!(
        three.ask("list depot")?,
        "10.0.0.7:80/DEFAULT/1.0/persistent{}"
    );

    // Configurations.
    for client in [&mut *one, &mut *two, &mut *three] {
        client.done("listen app.yaml g")?;
    }
    assert_eq!(two.ask("publish app.yaml g a=1")?, "true");
    for client in [&mut *one, &mut *two, &mut *three] {
        client.pushed("heard app.yaml", "a=1")?;
    }
    assert_eq!(three.ask("cas app.yaml g a=2 nonsense")?, "false");
    let md5 = "3872c9ae3f427af0be0ead09d07ae2cf";
    assert_eq!(three.ask(&format!("cas app.yaml g a=2 {md5}"))?, "true");
    one.pushed("heard app.yaml", "a=2")?;
    assert_eq!(one.ask("publish app.yaml g a=3")?, "true");
    three.pushed("heard app.yaml", "a=3")?;
    assert_eq!(two.ask("remove app.yaml g")?, "true");
    assert_eq!(three.ask("config app.yaml g")?, "null");

    // A crash: what its connection held goes at once.
    let before = Instant::now();
    three.0.kill()?;
    two.pushed("seen shop", &format!("{first} {second}"))?;
    eprintln!("kill -> listener: {:?}", before.elapsed());

    // Another hub: clients register again by themselves.
    facade.stop().await;
    facade = Facade::start(server, &files, None).await?;
    facade.wait("http", "shop", &shops_again()).await?;
    two.wait("list shop", &format!("{first} {second}"))?;
    one.ask("quit")?;
    facade
        .wait("http", "shop", &["10.0.0.2:80/100/true"])
        .await?;
    two.pushed("seen shop", second)?;
    two.ask("quit")?;
    facade.wait("http", "shop", &[]).await?;
    Ok(())
}

fn shops_again() -> [&'static str; 2] {
    ["10.0.0.1:80/100/true", "10.0.0.2:80/100/true"]
}
