use std::path::Path;

use super::*;

fn entry(name: &str, port: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{name}.example]\n  ports: [{{number: {port}, name: http, protocol: HTTP}}]\n  resolution: DNS\n"
    )
}

/// Writes a file whose time of change differs from any before, whatever the clock's grain.
fn write(path: &Path, text: &str) {
    let before = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok();
    std::fs::write(path, text).expect("a writable folder");
    if let Some(before) = before {
        let file = std::fs::File::options()
            .append(true)
            .open(path)
            .expect("the file");
        file.set_modified(before + std::time::Duration::from_secs(1))
            .expect("a settable time");
    }
}

fn names(store: &FileStore) -> Vec<String> {
    store.config().0.keys().map(|id| id.name.clone()).collect()
}

#[test]
fn an_invalid_document_keeps_its_last_good_version() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.yaml");
    let mut store = FileStore::new(folder.path());
    write(
        &file,
        &format!("{}---\n{}", entry("a", "80"), entry("b", "80")),
    );
    assert!(store.rescan());
    assert_eq!(names(&store), ["a", "b"]);
    assert!(!store.rescan(), "nothing changed");

    write(
        &file,
        &format!("{}---\n{}", entry("a", "80000"), entry("c", "80")),
    );
    assert!(store.rescan());
    assert_eq!(
        names(&store),
        ["a", "c"],
        "the last good `a`, no `b` any more, the new `c`"
    );
    let (_, problems) = store.config();
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "a.yaml: document 1 (line 1): ServiceEntry default/a: spec.ports[0].number: port number 80000 is not in 1 to 65535 (its last good version stays in force)"
    );

    write(&file, &format!("{}---\nkind: [\n", entry("a", "80")));
    assert!(store.rescan());
    assert_eq!(
        names(&store),
        ["a", "c"],
        "the unreadable document may be `c`"
    );

    std::fs::remove_file(&file).expect("the file");
    assert!(store.rescan());
    assert!(names(&store).is_empty());
}

#[test]
fn of_two_objects_with_one_name_the_first_file_wins() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("below")).expect("a folder");
    write(&folder.path().join("a.yaml"), &entry("a", "80"));
    write(&folder.path().join("below/b.yml"), &entry("a", "81"));
    write(&folder.path().join(".hidden.yaml"), "nonsense: [");
    write(&folder.path().join("notes.txt"), "no configuration");
    let mut store = FileStore::new(folder.path());
    store.rescan();
    let (config, problems) = store.config();
    assert_eq!(config.len(), 1);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].file, "below/b.yml");
}

#[tokio::test]
async fn reading_the_folder_is_no_change_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(&folder.path().join("a.yaml"), &entry("a", "80"));
    let mut store = FileStore::new(folder.path());
    let mut signals = watch(folder.path());
    let mut count = 0;
    let reading = async {
        while signals.recv().await.is_some() {
            count += 1;
            store.rescan();
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_millis(1500), reading).await;
    assert!(
        count <= 3,
        "{count} signals in one and a half seconds without any change"
    );
}
