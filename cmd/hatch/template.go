package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var templateKind = kind[api.Template]{
	noun: "template", ls: "hatch template ls",
	list: (*client.Client).ListTemplates,
	name: func(t api.Template) named { return named{t.ID, t.Name} },
}

// templateCommands are hatch template.
type templateCommands struct {
	*printer
	*connection
}

func (c templateCommands) command() *cobra.Command {
	common := nounCommands[api.Template]{
		printer: c.printer, connection: c.connection, kind: templateKind,
		get: (*client.Client).GetTemplate, remove: (*client.Client).DeleteTemplate, table: c.table,
	}
	return noun("template", "Manage defaults for new VMs",
		c.createCommand(), common.lsCommand("List templates"), common.inspectCommand(), common.rmCommand(),
		shareCommand(common, func(server *client.Client, cmd *cobra.Command, id, visibility string, with []string) (api.Template, error) {
			return server.UpdateTemplate(cmd.Context(), id, api.UpdateTemplate{Visibility: &visibility, SharedWith: with})
		}))
}

func (c templateCommands) table(templates []api.Template, wide bool) table {
	t := table{head: []string{"ID", "NAME", "IMAGE", "CPUS", "MEMORY", "DISK", "AGE"}}
	if wide {
		t.head = append(t.head, "NETWORK", "LABELS", "DESCRIPTION", "OWNER", "VISIBILITY")
	}
	for _, tpl := range templates {
		cells := []string{tpl.ID, tpl.Name, tpl.ImageID, count(tpl.VCPUCount), optionalMiB(tpl.MemMiB), optionalMiB(tpl.DiskMiB), c.age(tpl.CreatedAt)}
		if wide {
			network, description := "", ""
			if tpl.EnableNetwork != nil {
				network = yesNo(*tpl.EnableNetwork)
			}
			if tpl.Description != nil {
				description = *tpl.Description
			}
			cells = append(cells, network, labels(tpl.Labels), description, tpl.OwnerID, tpl.Visibility)
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

func (c templateCommands) createCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Store defaults for new VMs and print the template's id", Args: oneArg("name"),
		Example: "  hatch template create small --memory 256m --label size=small",
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			spec, err := readMachine(c.streams, cmd, server)
			if err != nil {
				return fmt.Errorf("cannot create the template: %w", err)
			}
			tpl, err := server.CreateTemplate(cmd.Context(), api.CreateTemplate{Name: args[0], MachineSpec: spec})
			if err != nil {
				return fmt.Errorf("cannot create the template: %w", err)
			}
			return c.printLine(tpl, tpl.ID)
		},
	}
	addMachineFlags(c.connection, cmd, machineFlags)
	return cmd
}
