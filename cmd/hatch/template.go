package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) templateCommand() *cobra.Command {
	k := kind[api.Template]{
		noun: "template", short: "List templates",
		list: (*client.Client).ListTemplates, get: (*client.Client).GetTemplate, remove: (*client.Client).DeleteTemplate,
		name: templateName, find: findTemplate, table: c.templateTable, complete: c.completeTemplates,
	}
	cmd := noun("template", "Manage defaults for new VMs", c.templateCreateCommand(), lsOf(c, k), inspectOf(c, k), rmOf(c, k))
	cmd.Aliases = []string{"templates"}
	return cmd
}

func (c *cli) templateTable(templates []api.Template, wide bool) table {
	t := table{head: []string{"ID", "NAME", "IMAGE", "CPUS", "MEMORY", "DISK", "AGE"}}
	if wide {
		t.head = append(t.head, "NETWORK", "LABELS", "DESCRIPTION")
	}
	for _, tpl := range templates {
		cells := []string{tpl.ID, tpl.Name, tpl.ImageID, count(tpl.VCPUCount), optionalMiB(tpl.MemMiB), optionalMiB(tpl.DiskMiB), c.age(tpl.CreatedAt)}
		if wide {
			network := ""
			if tpl.EnableNetwork != nil {
				network = yesNo(*tpl.EnableNetwork)
			}
			cells = append(cells, network, labels(tpl.Labels), tpl.Description)
		}
		t.row(cells...)
	}
	return t
}

func count(n *int) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(*n)
}

func optionalMiB(n *int) string {
	if n == nil {
		return ""
	}
	return mib(int64(*n))
}

func (c *cli) templateCreateCommand() *cobra.Command {
	var f machineFlags
	var description string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Store defaults for new VMs and print the template's id", Args: oneArg("name"),
		Example: "  hatch template create small --memory 256m --label size=small",
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			m, err := f.read(cmd.Context(), c, cmd, server)
			if err != nil {
				return fmt.Errorf("cannot create the template: %w", err)
			}
			tpl, err := server.CreateTemplate(cmd.Context(), api.CreateTemplate{
				Name: args[0], Description: description,
				ImageID: m.imageID, VCPUCount: m.vcpus, MemMiB: m.memMiB, DiskMiB: m.diskMiB,
				BootArgs: m.bootArgs, EnableNetwork: m.network, UserData: m.userData,
				Labels: m.labels, SSHAuthorizedKeys: m.sshKeys, RateLimits: m.limits,
			})
			if err != nil {
				return fmt.Errorf("cannot create the template: %w", err)
			}
			return c.printOne(tpl, func() { fmt.Fprintln(c.out, tpl.ID) })
		},
	}
	f.add(c, cmd)
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	return cmd
}
