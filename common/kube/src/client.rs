//! The way to the API server: credentials, proxies, and how its silence is noticed.

use std::{env, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use http::{Request, StatusCode, Uri};
use hyper::rt::{Read, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::{
        legacy::connect::{
            Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, retry::RetryPolicy},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, Service, ServiceBuilder, retry::RetryLayer, service_fn};

use crate::refusal::causes;

/// An API server that has said nothing for so long is taken for dead, even if its kernel still answers for it. It says
/// something each minute (a bookmark), and ends a watch by itself before five.
const SILENCE: Duration = Duration::from_secs(90);
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that has been idle for so long is probed, ...
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// ... so often, ...
const PROBE_EVERY: Duration = Duration::from_secs(3);
/// ... and given up when nothing has been acknowledged for so long, nor any data that was sent on it.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Credentials are read again no sooner than this: it may take a program that gives them (`exec`).
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Whose credentials for which API server: a kubeconfig's, else, as kubectl does it, those of `KUBECONFIG`, of the user's own
/// configuration, or of the pod's ServiceAccount.
#[derive(Clone, Debug, Default, Args)]
pub struct Access {
    /// A kubeconfig other than kubectl's, or the pod's ServiceAccount
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than the current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl Access {
    /// A client with these credentials. With `retry`, what the API server refuses for the moment (429, 503, 504) is tried again,
    /// longer and longer; a watch has a shorter patience of its own.
    ///
    /// # Errors
    /// When there are no credentials, or they cannot be read.
    pub async fn client(&self, retry: bool) -> anyhow::Result<Client> {
        Ok(self.connect(retry).await?.0)
    }

    /// The same with the address and port that it connects to: none of an API server that has a name there, or of one behind a
    /// proxy.
    ///
    /// # Errors
    /// As [`Access::client`].
    pub async fn connect(&self, retry: bool) -> anyhow::Result<(Client, Option<SocketAddr>)> {
        let (client, config) = self.connected(retry).await?;
        let is_direct = proxy(&config)?.is_none();
        let url = config.cluster_url;
        let address = address(&url).filter(|_| is_direct);
        Ok((self.clone().lasting(client, url, retry), address))
    }

    async fn connected(&self, retry: bool) -> anyhow::Result<(Client, Config)> {
        let mut config = self.config().await?;
        config.default_retry = retry;
        let client = connected(&config).context("cannot make a client of these credentials")?;
        Ok((client, config))
    }

    /// The same client for as long as there are credentials: after a request that had no answer, or 401, those of the next one are
    /// read anew, and go over a connection of their own. A certificate may have taken the place of one that expired, as kubelet's
    /// does, or another authority's. They stay those of the API server at `url`.
    fn lasting(self, client: Client, url: Uri, retry: bool) -> Client {
        let namespace = client.default_namespace().to_owned();
        let current = watch::Sender::new((client, Instant::now()));
        let service = service_fn(move |request: Request<Body>| {
            let (access, url, current) = (self.clone(), url.clone(), current.clone());
            async move {
                let client = current.borrow().0.clone();
                let result = client.send(request).await;
                let is_served = result.as_ref().is_ok_and(|response| response.status() != StatusCode::UNAUTHORIZED);
                if !is_served
                    && current.send_if_modified(|(_, read)| is_due(read))
                    && let Ok((client, config)) = access.connected(retry).await
                    && config.cluster_url == url
                {
                    current.send_modify(|(current, _)| *current = client);
                }
                Ok::<_, BoxError>(result?)
            }
        });
        Client::new(service, namespace)
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        if let Some(path) = &self.kubeconfig {
            let of_file = |error| anyhow!("cannot use the kubeconfig {}: {}", path.display(), causes(&error));
            let read = Kubeconfig::read_from(path).map_err(of_file)?;
            return Config::from_custom_kubeconfig(read, &options).await.map_err(of_file);
        }
        match (Config::from_kubeconfig(&options).await, &self.context) {
            (Ok(config), _) => Ok(config),
            (Err(error), Some(_)) => bail!("cannot use the kubeconfig: {}", causes(&error)),
            (Err(kubeconfig), None) => Config::incluster().map_err(|pod| {
                anyhow!(
                    "no way to the API server: {}; and no pod's ServiceAccount: {}",
                    causes(&kubeconfig),
                    causes(&pod)
                )
            }),
        }
    }
}

/// Whether credentials are to be read again, which is noted.
fn is_due(read: &mut Instant) -> bool {
    let is_due = read.elapsed() >= READ_AGAIN;
    if is_due {
        *read = Instant::now();
    }
    is_due
}

fn address(url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
    let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
    Some(SocketAddr::new(host.parse().ok()?, url.port_u16().unwrap_or(default)))
}

/// kube's own way to a client (`Client::try_from`), but with a connector that probes its connections. A firewall or a load
/// balancer that forgets a connection says nothing: without probes a watch over it would stay silent until [`SILENCE`] is
/// over, and probing costs the API server nothing, as shorter watches would.
fn connected(config: &Config) -> anyhow::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    // With a user timeout Linux goes by that alone, and the number of probes is of no account (tcp_keepalive_timer).
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let Some(proxy) = proxy(config)? else { return over(tcp, config) };
    match proxy.uri().scheme_str() {
        Some("http") => over(tunnel(&proxy, tcp), config),
        Some("https") => over(tunnel(&proxy, config.rustls_https_connector_with_connector(tcp)?), config),
        Some("socks5" | "socks5h") => {
            let socks = SocksV5::new(proxy.uri().clone(), tcp);
            let socks = match proxy.raw_auth() {
                Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
                None => socks,
            };
            over(socks, config)
        }
        _ => bail!("the proxy {} is none of http, https and socks5", proxy.uri()),
    }
}

/// The proxy on the way to the API server, as client-go has it: that of the kubeconfig in any case, else that of the
/// environment (`HTTPS_PROXY`), unless `NO_PROXY` has the API server. kube compares `NO_PROXY` with the proxy's own address,
/// and looks for no proxy in a pod.
fn proxy(config: &Config) -> anyhow::Result<Option<Intercept>> {
    let of_environment = |url: &Uri| {
        variables(["HTTPS_PROXY", "https_proxy"]).any(|text| text.parse::<Uri>().is_ok_and(|parsed| parsed == *url))
    };
    match &config.proxy_url {
        Some(url) if !of_environment(url) => {
            let all = Matcher::builder().all(url.to_string()).build();
            all.intercept(&config.cluster_url).map(Some).with_context(|| format!("cannot use the proxy-url {url}"))
        }
        // (The matcher knows `*` among names, but not for an address.)
        _ if variables(["NO_PROXY", "no_proxy"]).any(|list| list.split(',').any(|entry| entry.trim() == "*")) => {
            Ok(None)
        }
        _ => Ok(Matcher::from_env().intercept(&config.cluster_url)),
    }
}

fn variables(names: [&'static str; 2]) -> impl Iterator<Item = String> {
    names.into_iter().filter_map(|name| env::var(name).ok())
}

fn tunnel<C>(proxy: &Intercept, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri().clone(), connector);
    match proxy.basic_auth() {
        Some(authorization) => tunnel.with_auth(authorization.clone()),
        None => tunnel,
    }
}

/// A client over this kind of connection.
fn over<C>(connector: C, config: &Config) -> anyhow::Result<Client>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin,
    C::Future: Send,
    C::Error: Into<BoxError>,
{
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(SILENCE));
    // How long a connection was idle before a request is not the API server's silence.
    connector.set_reset_reader_on_write(true);
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_servers_address_has_a_port_and_a_name_is_none() {
        let of = |url: &str| url.parse().ok().and_then(|url| address(&url)).map(|address| address.to_string());
        assert_eq!(of("https://10.96.0.1").as_deref(), Some("10.96.0.1:443"));
        assert_eq!(of("https://[fd00::1]:6443/").as_deref(), Some("[fd00::1]:6443"));
        assert_eq!(of("http://127.0.0.1").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(of("https://kubernetes.default.svc"), None);
    }
}
