package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

const snapshots = "/snapshots"

// CreateSnapshot saves a VM's memory, devices and disk, and returns once they are
// durable on disk.
func (c *Client) CreateSnapshot(ctx context.Context, vmID string, body api.CreateSnapshot) (api.Snapshot, error) {
	return act[api.Snapshot](ctx, c, vmID, "snapshot", body)
}

// ListSnapshots returns the snapshots of one VM, which may be deleted, or with ""
// of all, newest first.
func (c *Client) ListSnapshots(ctx context.Context, vmID string) ([]api.Snapshot, error) {
	query := url.Values{}
	setString(query, "vm_id", vmID)
	return list[api.Snapshot](ctx, c, snapshots, query)
}

// VMSnapshots returns the snapshots of an existing VM, newest first.
func (c *Client) VMSnapshots(ctx context.Context, id string) ([]api.Snapshot, error) {
	path, err := item(vms, id, "snapshots")
	if err != nil {
		return nil, err
	}
	return list[api.Snapshot](ctx, c, path, nil)
}

// GetSnapshot returns the snapshot with this id or name.
func (c *Client) GetSnapshot(ctx context.Context, idOrName string) (api.Snapshot, error) {
	return fetch[api.Snapshot](ctx, c, http.MethodGet, snapshots, idOrName)
}

// DeleteSnapshot deletes the snapshot with this id or name. VMs cloned from it are
// not affected.
func (c *Client) DeleteSnapshot(ctx context.Context, idOrName string) error {
	return c.remove(ctx, snapshots, idOrName)
}

// RestoreVM restores a VM to one of its snapshots, by id or name, "" for the newest,
// and returns once it runs again.
func (c *Client) RestoreVM(ctx context.Context, id, snapshot string) (api.VM, error) {
	return act[api.VM](ctx, c, id, "restore", api.RestoreVM{SnapshotID: snapshot})
}

// ForkVM clones a VM and returns once the clones run with their own identities.
// Failed lists clones that could not be created; if all fail, ForkVM returns an
// error.
func (c *Client) ForkVM(ctx context.Context, id string, body api.ForkVM) (api.Copies, error) {
	body.UserData, body.UserDataEncoding = encodeUserData(body.UserData, body.UserDataEncoding)
	return act[api.Copies](ctx, c, id, "fork", body)
}

// CreateVMs clones body.Count VMs, or one, from the snapshot body.SnapshotID. It
// returns errors as ForkVM does.
func (c *Client) CreateVMs(ctx context.Context, body api.CreateVM, opts CreateOptions) (api.Copies, error) {
	if body.Count == nil {
		one := 1
		body.Count = &one
	}
	return create[api.Copies](ctx, c, body, opts)
}

// act sends body to verb of a VM and returns the response.
func act[T any](ctx context.Context, c *Client, id, verb string, body any) (T, error) {
	var out T
	path, err := item(vms, id, verb)
	if err != nil {
		return out, err
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: path, body: body}, &out)
	return out, err
}
