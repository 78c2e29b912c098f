package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c sshCommands) config() *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use: "ssh-config [VM...]", Short: "Print ssh configuration for VMs, all by default",
		Long: `Print ssh configuration for VMs, all by default. At each login ssh runs hatch
ssh-cert, so that the VM needs no key of yours and its host key is verified. If that
fails, ssh uses your own keys.`,
		Example:           "  hatch ssh-config > ~/.ssh/config.d/hatch",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			vms, err := networkedVMs(cmd.Context(), server, refs)
			if err != nil {
				return fmt.Errorf("cannot print ssh configuration: %w", err)
			}
			return c.printConfig(vms, user)
		},
	}
	cmd.Flags().StringVarP(&user, "user", "l", "", "log in as this `user`")
	return cmd
}

// networkedVMs returns the VMs in refs, or all VMs with a network.
func networkedVMs(ctx context.Context, server *client.Client, refs []string) ([]api.VM, error) {
	all, err := allVMs(ctx, server, client.ListOptions{})
	if err != nil {
		return nil, err
	}
	var vms []api.VM
	if len(refs) == 0 {
		for _, v := range all {
			if v.SSHPort != 0 {
				vms = append(vms, v)
			}
		}
		return vms, nil
	}
	for _, ref := range refs {
		v, err := pickFrom(vmKind, ref, all)
		if err != nil {
			return nil, err
		}
		if v.SSHPort == 0 {
			return nil, fmt.Errorf("%s has no network", displayName(v))
		}
		vms = append(vms, v)
	}
	return vms, nil
}

var hostAlias = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func (c sshCommands) printConfig(vms []api.VM, asUser string) error {
	host, err := c.host()
	if err != nil {
		return err
	}
	for _, v := range vms {
		user, err := sshUser(v, asUser)
		if err != nil {
			return fmt.Errorf("%s: %w", v.ID, err)
		}
		own, err := c.ownKeyOptions(v.ID)
		if err != nil {
			return err
		}
		dir, err := knownHosts{c.env}.login(v.ID)
		if err != nil {
			return err
		}
		names := v.ID
		if hostAlias.MatchString(v.Name) {
			names = v.Name + " " + v.ID
		}
		fmt.Fprintf(c.out, "Match originalhost %s exec \"%s ssh-cert %s >/dev/null\"\n", strings.ReplaceAll(names, " ", ","), c.itself(), v.ID)
		for _, o := range (sshLogin{dir}).options() {
			fmt.Fprintf(c.out, "  %s\n", strings.Replace(o, "=", " ", 1))
		}
		fmt.Fprintf(c.out, "Host %s\n  HostName %s\n  Port %d\n  User %s\n", names, host, v.SSHPort, user)
		for _, o := range append(own, sshOptions(v.ID)...) {
			fmt.Fprintf(c.out, "  %s\n", strings.Replace(o, "=", " ", 1))
		}
	}
	return nil
}

// itself returns the command line of hatch with the server that this one has, for a shell.
func (c sshCommands) itself() string {
	line := "hatch"
	if c.connection.context != "" {
		line += " --context " + quote(c.connection.context)
	}
	if c.url != "" {
		line += " --url " + quote(c.url)
	}
	if c.keyFile != "" {
		line += " --key-file " + quote(c.keyFile)
	}
	return line
}
