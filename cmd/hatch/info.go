package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// serverInfo is what hatch info prints.
type serverInfo struct {
	URL           string         `json:"url"`
	Via           string         `json:"via"` // what has chosen the server: a flag, a variable, a context, the local socket
	Client        string         `json:"client"`
	Server        string         `json:"server"`
	Status        string         `json:"status"`
	VMM           string         `json:"vmm"`
	Key           string         `json:"key,omitempty"` // the one in use
	VMs           map[string]int `json:"vms"`           // by state
	Images        int            `json:"images"`
	Templates     int            `json:"templates"`
	Snapshots     int            `json:"snapshots"`
	SnapshotBytes int64          `json:"snapshot_bytes"`
}

func (c serverCommands) info() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Show the server, and how many objects it has", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			t, err := c.target()
			if err != nil {
				return err
			}
			info := serverInfo{URL: t.url, Via: t.via, Client: programVersion(), VMs: map[string]int{}}
			if err := info.read(cmd.Context(), server); err != nil {
				return fmt.Errorf("cannot show the server: %w", err)
			}
			return c.printOne(info, func() {
				var states []string
				for _, state := range slices.Sorted(maps.Keys(info.VMs)) {
					states = append(states, fmt.Sprintf("%d %s", info.VMs[state], state))
				}
				t := table{head: []string{"WHAT", "VALUE"}}
				t.row("server", "hatchd "+info.Server+" at "+info.URL)
				t.row("chosen by", info.Via)
				t.row("client", "hatch "+info.Client)
				t.row("health", info.Status)
				t.row("VMM", info.VMM)
				t.row("key", info.Key)
				t.row("VMs", strings.Join(states, ", "))
				t.row("images", fmt.Sprint(info.Images))
				t.row("templates", fmt.Sprint(info.Templates))
				t.row("snapshots", fmt.Sprintf("%d, %s", info.Snapshots, bytesText(info.SnapshotBytes)))
				_ = t.write(c.out, c.colour())
			})
		},
	}
}

func (i *serverInfo) read(ctx context.Context, server *client.Client) error {
	health, err := server.Health(ctx)
	if err != nil {
		return err
	}
	i.Server, i.Status, i.VMM = health.Version, health.Status, health.VMM
	vms, err := allVMs(ctx, server, client.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range vms {
		i.VMs[v.State]++
	}
	images, err := server.ListImages(ctx)
	if err != nil {
		return err
	}
	templates, err := server.ListTemplates(ctx)
	if err != nil {
		return err
	}
	snapshots, err := server.ListSnapshots(ctx, "")
	if err != nil {
		return err
	}
	keys, err := server.ListKeys(ctx)
	if err != nil {
		return err
	}
	if at := slices.IndexFunc(keys, func(k api.Key) bool { return k.Current }); at >= 0 {
		i.Key = keys[at].Name
	}
	i.Images, i.Templates, i.Snapshots = len(images), len(templates), len(snapshots)
	for _, s := range snapshots {
		i.SnapshotBytes += s.SizeBytes
	}
	return nil
}
