//! Images, snapshots, pods, pod network and logs.
