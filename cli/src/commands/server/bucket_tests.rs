//! A small store that speaks S3 and checks each signature anew, as Amazon describes it; and scheduled snapshots to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::{digest, hmac};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use parking_lot::Mutex;

use super::super::archive;
use super::super::membership::{Membership, write_keys};
use super::super::schedule::Taker;
use super::*;
use coracle_store::Store;

const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

fn encode(text: &str, slash: bool) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        b'/' if !slash => "/".into(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Whether a request's query carries the signature that the secret gives it ("Authenticating Requests: Using Query
/// Parameters (AWS Signature Version 4)").
fn is_signed(method: &str, path: &str, host: &str, query: &[(String, String)], secret: &str) -> bool {
    let get = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let (Some(signature), Some(date), Some(credential)) =
        (get("X-Amz-Signature"), get("X-Amz-Date"), get("X-Amz-Credential"))
    else {
        return false;
    };
    if get("X-Amz-Algorithm") != Some("AWS4-HMAC-SHA256") || get("X-Amz-SignedHeaders") != Some("host") {
        return false;
    }
    let mut pairs: Vec<String> = query
        .iter()
        .filter(|(key, _)| key != "X-Amz-Signature")
        .map(|(key, value)| format!("{}={}", encode(key, true), encode(value, true)))
        .collect();
    pairs.sort();
    let canonical = format!("{method}\n{path}\n{}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD", pairs.join("&"));
    let scope: Vec<&str> = credential.split('/').collect();
    let [ID, day, region, "s3", "aws4_request"] = scope[..] else { return false };
    let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{region}/s3/aws4_request\n{hash}");
    let mut key = sign(format!("AWS4{secret}").as_bytes(), day);
    for part in [region, "s3", "aws4_request"] {
        key = sign(&key, part);
    }
    hex::encode(sign(&key, &text)) == signature
}

async fn serve(State(objects): State<Objects>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let query: Vec<(String, String)> = url_query(head.uri.query().unwrap_or_default());
    let host = head.headers["host"].to_str().unwrap();
    if !is_signed(head.method.as_str(), head.uri.path(), host, &query, SECRET) {
        return (StatusCode::FORBIDDEN, "<Error><Code>SignatureDoesNotMatch</Code></Error>").into_response();
    }
    let Some(rest) = head.uri.path().strip_prefix("/backups") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let key = decode(rest.trim_start_matches('/'));
    match head.method.as_str() {
        "PUT" => {
            let length: usize = head.headers["content-length"].to_str().unwrap().parse().unwrap();
            let bytes = axum::body::to_bytes(body, length).await.unwrap();
            assert_eq!(bytes.len(), length);
            objects.lock().insert(key, bytes.to_vec());
            StatusCode::OK.into_response()
        }
        "DELETE" => {
            objects.lock().remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => {
            // Two at a time, so that lists have pages.
            let get = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            let (prefix, after) =
                (get("prefix").unwrap_or_default(), get("continuation-token").unwrap_or_default());
            let objects = objects.lock();
            let all: Vec<&String> =
                objects.keys().filter(|key| key.starts_with(&prefix) && **key > after).collect();
            let contents: String = all
                .iter()
                .take(2)
                .map(|key| {
                    format!(
                        "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                         <ETag>\"x\"</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>",
                        encode(key, false)
                    )
                })
                .collect();
            let more = match all.len() > 2 {
                true => format!("<NextContinuationToken>{}</NextContinuationToken>", all[1]),
                false => String::new(),
            };
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
                 <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>backups</Name>\
                 <Prefix>{prefix}</Prefix><KeyCount>{}</KeyCount><MaxKeys>2</MaxKeys><EncodingType>url</EncodingType><IsTruncated>{}</IsTruncated>\
                 {contents}{more}</ListBucketResult>",
                all.len().min(2),
                all.len() > 2
            )
            .into_response()
        }
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            }
            b'+' => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).unwrap()
}

fn url_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

async fn fake() -> (String, Objects) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let objects = Objects::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(serve).with_state(objects.clone());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (endpoint, objects)
}

#[test]
fn signatures_are_those_of_amazons_example() {
    // From the page named above: GET test.txt of examplebucket, good for a day.
    let query = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"),
        ("X-Amz-Date", "20130524T000000Z"),
        ("X-Amz-Expires", "86400"),
        ("X-Amz-SignedHeaders", "host"),
        ("X-Amz-Signature", "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
    ];
    let query: Vec<(String, String)> =
        query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    // The example's id is another than this module's, and only the id is compared beside the signature.
    let text = {
        let mut pairs: Vec<String> =
            query[..5].iter().map(|(k, v)| format!("{}={}", encode(k, true), encode(v, true))).collect();
        pairs.sort();
        let canonical = format!(
            "GET\n/test.txt\n{}\nhost:examplebucket.s3.amazonaws.com\n\nhost\nUNSIGNED-PAYLOAD",
            pairs.join("&")
        );
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        format!("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n{hash}")
    };
    let mut key = sign(b"AWS4wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524");
    for part in ["us-east-1", "s3", "aws4_request"] {
        key = sign(&key, part);
    }
    assert_eq!(hex::encode(sign(&key, &text)), query[5].1);
}

#[tokio::test]
async fn scheduled_snapshots_go_to_a_bucket_and_only_so_many_are_kept() {
    let (endpoint, objects) = fake().await;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(coracle_store::Options::new(dir.path().join("store"))).await.unwrap();
    let keys = super::super::membership::SHARED_KEYS;
    let keys = keys.iter().map(|name| ((*name).to_owned(), format!("secret of {name}"))).collect();
    write_keys(&dir.path().join("pki"), &keys).unwrap();
    let membership = Membership::first("10.96.0.0/12".parse().unwrap(), "10.0.0.0/16".parse().unwrap());
    let s3 = |secret: &str| {
        let credentials = Credentials::new(ID, secret);
        Arc::new(Place::Bucket(Box::new(
            S3::new("backups/a b/c", Some(&endpoint), "us-east-1", credentials).unwrap(),
        )))
    };
    let directory = dir.path().join("kept");
    let taker = |place: Arc<Place>| Taker {
        source: archive::Source {
            store: store.clone(),
            membership: membership.clone(),
            data_dir: dir.path().to_owned(),
            encryption: None,
        },
        place,
        keep: 3,
        passphrase: Some("open sesame".into()),
    };
    let plain = Arc::new(Place::open(directory.to_str().unwrap(), None, "").unwrap());
    objects.lock().insert("a b/c/of somebody else".into(), Vec::new());
    for place in [s3(SECRET), plain] {
        let taker = taker(place.clone());
        let mut taken = Vec::new();
        for _ in 0..5 {
            taken.push(taker.take().await.unwrap());
        }
        let left: Vec<String> =
            place.list().await.unwrap().into_iter().filter(|name| name.starts_with("coracle-")).collect();
        assert_eq!(left, taken[2..], "the newest three");
    }
    assert!(objects.lock().contains_key("a b/c/of somebody else"), "others' objects stay");
    // What lies there is whole, and opens with the passphrase alone.
    let newest = objects.lock().iter().rfind(|(key, _)| key.contains("coracle-")).unwrap().1.clone();
    let (file, state) = (dir.path().join("fetched"), dir.path().join("state"));
    std::fs::write(&file, newest).unwrap();
    assert!(archive::unpack(&file, &state, None).is_err());
    assert!(archive::unpack(&file, &state, Some("open sesam")).is_err());
    assert_eq!(archive::unpack(&file, &state, Some("open sesame")).unwrap().keys, keys);
    let (head, found) = archive::inspect(&file, Some("open sesame")).unwrap();
    assert_eq!((head.keys, found.revision), (keys, store.revision()));
    // Another secret: refused, and said so.
    let refused = taker(s3("another")).take().await.unwrap_err();
    assert!(format!("{refused:#}").contains("SignatureDoesNotMatch"), "{refused:#}");
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn half_a_copy_stays_neither_after_a_failure_nor_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::open(dir.path().to_str().unwrap(), None, "").unwrap();
    let kept = ["coracle-20260101T000000000Z.snapshot", "coracle-notes.snapshot.part", "film.part"];
    for name in kept.iter().chain(&["coracle-20260101T010000000Z.snapshot.part"]) {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    // This file opens, and its first byte cannot be read.
    let broken = Path::new("/proc/self/mem");
    let refused = place.put("coracle-20260101T020000000Z.snapshot", broken).await.unwrap_err();
    assert!(format!("{refused:#}").contains("write coracle-20260101T020000000Z.snapshot to"), "{refused:#}");
    assert_eq!(place.list().await.unwrap(), kept);
    place.put("coracle-20260101T030000000Z.snapshot", &dir.path().join("film.part")).await.unwrap();
    assert_eq!(place.list().await.unwrap().len(), kept.len() + 1);
}
