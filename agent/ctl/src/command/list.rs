//! Lists and streams of the whole fabric: nodes, pods, events, images; and the import of an image.

use super::LONG;
use crate::failure::{Class, Failure};
use crate::output::{print, render_item, render_list};
use crate::session::Session;
use crate::{args::Format, table};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub(super) async fn nodes(session: &Session) -> Result<(), Failure> {
    let nodes = session
        .client()?
        .nodes()
        .await
        .map_err(|error| error.into_failure("list the nodes"))?;
    print(render_list(session.global.output, &nodes, table::nodes)?)
}

/// Pods of one namespace, or of all where it is `None`.
pub(super) async fn pods(session: &Session, namespace: Option<&str>) -> Result<(), Failure> {
    let mut pods = session
        .client()?
        .pods()
        .await
        .map_err(|error| error.into_failure("list the pods"))?;
    pods.retain(|pod| namespace.is_none_or(|namespace| pod.workload.namespace == namespace));
    pods.sort_by(|a, b| (&a.workload, a.ordinal, &a.pod_id).cmp(&(&b.workload, b.ordinal, &b.pod_id)));
    if let (Format::Table, true, Some(namespace)) = (session.global.output, pods.is_empty(), namespace) {
        crate::output::note(&format!(
            "no pods in the namespace `{namespace}`; -A shows all namespaces"
        ));
    }
    print(render_list(session.global.output, &pods, |pods| {
        table::pods(pods, namespace.is_none())
    })?)
}

pub(super) async fn events(session: &Session) -> Result<(), Failure> {
    let events = session
        .client()?
        .events()
        .await
        .map_err(|error| error.into_failure("list the events"))?;
    print(render_list(session.global.output, &events, table::events)?)
}

/// Never ends well: events go on for as long as the node does.
pub(super) async fn follow_events(session: &Session) -> Result<(), Failure> {
    let what = "follow the events";
    let client = session.client()?;
    let mut events = client
        .follow_events()
        .await
        .map_err(|error| error.into_failure(what))?;
    if session.global.output == Format::Table {
        print(table::event_line_header())?;
    }
    while let Some(event) = events.next().await.map_err(|error| error.into_failure(what))? {
        print(render_item(session.global.output, &event, table::event_line)?)?;
    }
    Err(Failure::new(Class::Failed, what)
        .because(format!("`{}` ended the stream", client.endpoint()))
        .hint("the agent there has stopped or restarts: run the command again, or ask another node"))
}

pub(super) async fn images(session: &Session) -> Result<(), Failure> {
    let mut images = session
        .client()?
        .images()
        .await
        .map_err(|error| error.into_failure("list the images"))?;
    images.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
    print(render_list(session.global.output, &images, table::images)?)
}

pub(super) async fn import(session: &Session, path: &Path) -> Result<(), Failure> {
    let what = format!("import `{}`", path.display());
    let (archive, length): (Box<dyn Read + Send>, Option<u64>) = if path == Path::new("-") {
        (Box::new(io::stdin()), None)
    } else {
        let unreadable = |error: io::Error| Failure::new(Class::Invalid, what.clone()).because(error);
        let file = File::open(path).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if about.is_dir() {
            return Err(Failure::new(Class::Invalid, what.clone())
                .because("it is a folder")
                .hint(format!(
                    "make an archive of it: tar -C {} -cf image.tar .",
                    path.display()
                )));
        }
        // A file that grows meanwhile is cut where it ended; one that shrinks breaks the request.
        let length = about.is_file().then_some(about.len());
        (Box::new(file.take(length.unwrap_or(u64::MAX))), length)
    };
    let client = session.client_with(LONG)?;
    let images = client
        .import_image(archive, length)
        .await
        .map_err(|error| error.into_failure(what))?;
    print(render_list(session.global.output, &images, table::images)?)
}
