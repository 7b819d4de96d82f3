//! Who a container runs as: numbers as they are, names by the image's own `/etc/passwd` and `/etc/group`.

use std::io::Read as _;
use std::path::Path;

use coracle_cri_api::v1;
use serde_json::{Value, json};

use super::{Error, wrong};

/// The longest `/etc/passwd` or `/etc/group` that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// A file of the image; empty when it is not there. Links cannot lead out of it.
fn file(rootfs: &Path, path: &str) -> String {
    let read = || -> std::io::Result<String> {
        let root = cap_std::fs::Dir::open_ambient_dir(rootfs, cap_std::ambient_authority())?;
        let mut text = String::new();
        root.open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(text)
    };
    read().unwrap_or_default()
}

fn accounts(rootfs: &Path) -> Vec<Account> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        Some(Account { name, uid, gid: fields.next()?.parse().ok()? })
    };
    file(rootfs, "etc/passwd").lines().filter_map(parse).collect()
}

/// Groups as (name, number, members).
fn groups(rootfs: &Path) -> Vec<(String, u32, Vec<String>)> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or_default().split(',').map(str::to_owned).collect();
        Some((name, gid, members))
    };
    file(rootfs, "etc/group").lines().filter_map(parse).collect()
}

fn number(value: i64, what: &str) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error(format!("{value} is not a {what} id")))
}

/// The user of the specification: what the pod asks for comes before what the image says (`user[:group]`).
pub fn resolve(
    rootfs: &Path,
    security: &v1::LinuxContainerSecurityContext,
    image: &str,
) -> Result<Value, Error> {
    let (image_user, image_group) = image.split_once(':').unwrap_or((image, ""));
    let asked = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => image_user.to_owned(),
        (None, name) => name.to_owned(),
    };
    let accounts = accounts(rootfs);
    let (account, uid) = match asked.parse::<u32>() {
        _ if asked.is_empty() => (accounts.iter().find(|a| a.uid == 0), 0),
        Ok(uid) => (accounts.iter().find(|a| a.uid == uid), uid),
        Err(_) => match accounts.iter().find(|a| a.name == asked) {
            Some(account) => (Some(account), account.uid),
            None => return wrong(format!("the image has no user {asked:?} in its /etc/passwd")),
        },
    };
    let groups = groups(rootfs);
    let from_image = security.run_as_user.is_none() && security.run_as_username.is_empty();
    let gid = match &security.run_as_group {
        Some(gid) => number(gid.value, "group")?,
        None if from_image && !image_group.is_empty() => match image_group.parse() {
            Ok(gid) => gid,
            Err(_) => match groups.iter().find(|(name, ..)| name == image_group) {
                Some((_, gid, _)) => *gid,
                None => return wrong(format!("the image has no group {image_group:?} in its /etc/group")),
            },
        },
        None => account.map_or(0, |a| a.gid),
    };
    let mut additional =
        security.supplemental_groups.iter().map(|g| number(*g, "group")).collect::<Result<Vec<_>, _>>()?;
    let merge = security.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge;
    if let Some(account) = account.filter(|_| merge) {
        let member = |(_, _, members): &&(String, u32, Vec<String>)| members.contains(&account.name);
        additional.extend(groups.iter().filter(member).map(|(_, gid, _)| *gid));
    }
    additional.sort_unstable();
    additional.dedup();
    Ok(json!({"uid": uid, "gid": gid, "additionalGids": additional}))
}
