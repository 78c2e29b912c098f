package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

const snapshots = "/snapshots"

// CreateSnapshot keeps a VM's memory, devices and disk of one moment, and
// returns once they are safe on disk.
func (c *Client) CreateSnapshot(ctx context.Context, vmID string, body api.CreateSnapshot) (api.Snapshot, error) {
	return act[api.Snapshot](ctx, c, vmID, "snapshot", body)
}

// ListSnapshots returns the snapshots of one VM, which may be gone, or with ""
// of all; the newest first.
func (c *Client) ListSnapshots(ctx context.Context, vmID string) ([]api.Snapshot, error) {
	query := url.Values{}
	setString(query, "vm_id", vmID)
	var out []api.Snapshot
	_, err := c.do(ctx, call{method: http.MethodGet, path: snapshots, query: query}, &out)
	return out, err
}

// VMSnapshots returns the snapshots of a VM that is there, the newest first.
func (c *Client) VMSnapshots(ctx context.Context, id string) ([]api.Snapshot, error) {
	return fetch[[]api.Snapshot](ctx, c, http.MethodGet, vms, id, "snapshots")
}

// GetSnapshot returns the snapshot with this id or name.
func (c *Client) GetSnapshot(ctx context.Context, idOrName string) (api.Snapshot, error) {
	return fetch[api.Snapshot](ctx, c, http.MethodGet, snapshots, idOrName)
}

// DeleteSnapshot deletes the snapshot with this id or name; VMs made from it
// stay.
func (c *Client) DeleteSnapshot(ctx context.Context, idOrName string) error {
	return c.remove(ctx, snapshots, idOrName)
}

// RestoreVM puts a VM back to a snapshot of it, by id or name, or with "" to
// the newest, and returns once it goes on from there.
func (c *Client) RestoreVM(ctx context.Context, id, snapshot string) (api.VM, error) {
	return act[api.VM](ctx, c, id, "restore", api.RestoreVM{SnapshotID: snapshot})
}

// ForkVM makes new VMs that go on from where a VM is, and returns once they run
// as themselves. When not one could be made that is an error; of others it is
// in Failed.
func (c *Client) ForkVM(ctx context.Context, id string, body api.ForkVM) (api.Copies, error) {
	return act[api.Copies](ctx, c, id, "fork", body)
}

// CreateVMs makes body.Count VMs, or one, from the snapshot body.SnapshotID. Its
// failures are ForkVM's.
func (c *Client) CreateVMs(ctx context.Context, body api.CreateVM, opts CreateOptions) (api.Copies, error) {
	if body.Count == nil {
		one := 1
		body.Count = &one
	}
	return create[api.Copies](ctx, c, body, opts)
}

// act sends body to verb of a VM and returns the answer.
func act[T any](ctx context.Context, c *Client, id, verb string, body any) (T, error) {
	var out T
	path, err := item(vms, id, verb)
	if err != nil {
		return out, err
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: path, body: body}, &out)
	return out, err
}
