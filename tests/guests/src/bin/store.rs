//! Reads settings through wasi:config and keeps values through wasi:keyvalue: each argument is one step, of words that are
//! joined by commas. Prints what came of each.

mod config {
    wit_bindgen::generate!({ path: "../../runtime/wasm/wit/config", world: "imports" });
}
mod keyvalue {
    wit_bindgen::generate!({ path: "../../runtime/wasm/wit/keyvalue", world: "imports" });
}

use config::wasi::config::store as settings;
use keyvalue::wasi::keyvalue::{atomics, batch, store};

fn main() {
    for step in std::env::args().skip(1) {
        let words: Vec<&str> = step.split(',').collect();
        let word = |n: usize| words.get(n).copied().unwrap_or_default();
        let (bucket, key) = (word(1), word(2));
        let opened = || store::open(bucket);
        match word(0) {
            "config" => println!("{:?}", settings::get(bucket)),
            "config-all" => println!("{:?}", settings::get_all()),
            "get" => {
                let value = opened().and_then(|b| b.get(key));
                println!("{:?}", value.map(|v| v.map(|v| String::from_utf8_lossy(&v).into_owned())));
            }
            "set" => println!("{:?}", opened().and_then(|b| b.set(key, word(3).as_bytes()))),
            "fill" => {
                let value = vec![b'x'; word(3).parse().unwrap_or(0)];
                println!("{:?}", opened().and_then(|b| b.set(key, &value)));
            }
            "delete" => println!("{:?}", opened().and_then(|b| b.delete(key))),
            "exists" => println!("{:?}", opened().and_then(|b| b.exists(key))),
            "increment" => {
                println!(
                    "{:?}",
                    opened().and_then(|b| atomics::increment(&b, key, word(3).parse().unwrap_or(0)))
                );
            }
            "count" => {
                // One more, a thousand times: for those who count together.
                let bucket = opened();
                for _ in 0..word(3).parse().unwrap_or(0) {
                    if let Err(error) =
                        bucket.as_ref().map_err(Clone::clone).and_then(|b| atomics::increment(b, key, 1))
                    {
                        println!("{error:?}");
                    }
                }
            }
            "many" => {
                // As many keys as the number says, in batches of a hundred.
                let Ok(bucket) = opened() else { continue };
                let all: Vec<_> =
                    (0..word(2).parse::<usize>().unwrap_or(0)).map(|n| format!("key/{n:05}")).collect();
                for keys in all.chunks(100) {
                    let pairs: Vec<_> = keys.iter().map(|k| (k.clone(), b"v".to_vec())).collect();
                    if let Err(error) = batch::set_many(&bucket, &pairs) {
                        println!("{error:?}");
                    }
                }
            }
            "keys" => println!("{:?}", opened().and_then(|b| keys(&b))),
            other => println!("unknown: {other}"),
        }
    }
}

/// How many keys there are, in how many pages, and the first and the last.
fn keys(bucket: &store::Bucket) -> Result<(usize, usize, Option<String>, Option<String>), store::Error> {
    let (mut all, mut pages, mut cursor) = (Vec::new(), 0, None);
    loop {
        let page = bucket.list_keys(cursor)?;
        pages += 1;
        all.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok((all.len(), pages, all.first().cloned(), all.last().cloned()));
        }
    }
}
