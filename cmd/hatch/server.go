package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
)

// serverCommands are the commands about the server: health, version and api.
type serverCommands struct {
	*printer
	*connection
}

func (c serverCommands) health() *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "Show the health of the server; fails if it is degraded", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.keyless()
			if err != nil {
				return err
			}
			health, err := server.Health(cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot get the health of the server: %w", err)
			}
			err = c.printOne(health, func() {
				fmt.Fprintf(c.out, "hatchd %s with %s: %s\n", clean(health.Version), clean(health.VMM), clean(health.Status))
				t := table{head: []string{"PART", "STATE", "MESSAGE"}}
				for _, p := range health.Parts {
					t.row(p.Name, p.Status, p.Message)
				}
				_ = t.write(c.out, c.colour())
			})
			if err == nil && health.Status != "ok" {
				return errors.New("the server is degraded")
			}
			return err
		},
	}
}

// version is set by the linker.
var version string

func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

type versions struct {
	Client string `json:"client"`
	Server string `json:"server,omitempty"`
	URL    string `json:"url"`
}

const versionTimeout = 2 * time.Second

func (c serverCommands) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of hatch and of the server", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := c.target()
			if err != nil {
				return err
			}
			v := versions{Client: programVersion(), URL: t.url, Server: c.serverVersion(cmd.Context())}
			return c.printOne(v, func() {
				fmt.Fprintf(c.out, "hatch %s\n", v.Client)
				if v.Server == "" {
					fmt.Fprintf(c.out, "no server answers at %s\n", v.URL)
					return
				}
				fmt.Fprintf(c.out, "hatchd %s at %s\n", clean(v.Server), v.URL)
			})
		},
	}
}

// serverVersion returns "" if no server answers.
func (c serverCommands) serverVersion(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	server, err := c.keyless()
	if err != nil {
		return ""
	}
	health, err := server.Health(ctx)
	if err != nil {
		return ""
	}
	return health.Version
}
