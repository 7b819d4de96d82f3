//! How a node that joins comes to trust a cluster: by the hash of the authority's key, or by a signature that the token made.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::Kubeconfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

const KUBECONFIG: &str = "kubeconfig";

/// The certificate in a kubeconfig.
fn of_kubeconfig(text: &str) -> Result<String> {
    let config = Kubeconfig::from_yaml(text).context("cluster-info holds no kubeconfig")?;
    let cluster =
        config.clusters.into_iter().find_map(|c| c.cluster).context("cluster-info names no cluster")?;
    let data = cluster.certificate_authority_data.context("cluster-info holds no authority")?;
    let pem = STANDARD.decode(data.trim()).context("the authority in cluster-info is not base64")?;
    String::from_utf8(pem).context("the authority in cluster-info is not PEM")
}

/// The authority (PEM) that `kube-public/cluster-info` publishes.
pub fn of_cluster_info(info: &ConfigMap) -> Result<String> {
    let data = info.data.as_ref().and_then(|d| d.get(KUBECONFIG));
    of_kubeconfig(data.context("cluster-info holds no kubeconfig")?)
}

/// `sha256:` and the digest of the public key (SubjectPublicKeyInfo) of an authority, as kubeadm has it.
pub fn hash(ca_pem: &str) -> Result<String> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).context("the authority is not PEM")?;
    let (_, cert) = X509Certificate::from_der(&der).context("the authority is no certificate")?;
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(cert.public_key().raw))))
}

/// The authority in `cluster-info`, if `hash` names it or, without one, if the token signed it. `None`: not signed yet.
pub fn trusted(info: &ConfigMap, token: &str, wanted: Option<&str>) -> Result<Option<String>> {
    let ca_pem = of_cluster_info(info)?;
    if let Some(wanted) = wanted {
        let found = hash(&ca_pem)?;
        ensure!(
            found.eq_ignore_ascii_case(wanted),
            "the cluster's authority is {found}, not {wanted}: this is another cluster, or somebody in between"
        );
        return Ok(Some(ca_pem));
    }
    let (id, secret) = token.split_once('.').context("a token is ID.SECRET")?;
    let data = info.data.as_ref();
    let content = data.and_then(|d| d.get(KUBECONFIG)).context("cluster-info holds no kubeconfig")?;
    let Some(signature) = data.and_then(|d| d.get(&format!("jws-kubeconfig-{id}"))) else { return Ok(None) };
    let expected = coracle_controllers::bootstrap_tokens::signature(content, id, secret)?;
    if Sha256::digest(&expected) != Sha256::digest(signature) {
        bail!("cluster-info is not signed by this token: this is another cluster, or somebody in between");
    }
    Ok(Some(ca_pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ca_pem: &str) -> ConfigMap {
        let data = STANDARD.encode(ca_pem);
        let config = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: '', cluster: {{server: 'https://x', certificate-authority-data: {data}}}}}]\n"
        );
        ConfigMap { data: Some([(KUBECONFIG.to_owned(), config)].into()), ..ConfigMap::default() }
    }

    #[test]
    fn only_the_right_authority_is_trusted() {
        let ca = || {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
        };
        let (mine, other) = (ca(), ca());
        let token = "abcdef.0123456789abcdef";
        assert_eq!(trusted(&info(&mine), token, Some(&hash(&mine).unwrap())).unwrap(), Some(mine.clone()));
        assert!(trusted(&info(&mine), token, Some(&hash(&other).unwrap())).is_err());
        let mut signed = info(&mine);
        assert_eq!(trusted(&signed, token, None).unwrap(), None);
        let data = signed.data.as_mut().unwrap();
        let by = |secret: &str, content: &str| {
            coracle_controllers::bootstrap_tokens::signature(content, "abcdef", secret).unwrap()
        };
        let content = data[KUBECONFIG].clone();
        data.insert("jws-kubeconfig-abcdef".into(), by("0123456789abcdef", &content));
        assert_eq!(trusted(&signed, token, None).unwrap(), Some(mine));
        signed
            .data
            .as_mut()
            .unwrap()
            .insert("jws-kubeconfig-abcdef".into(), by("0123456789abcdee", &content));
        assert!(trusted(&signed, token, None).is_err());
    }
}
