package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) keyCommand() *cobra.Command {
	k := kind[api.Key]{
		noun: "key", short: "List API keys, without their secrets",
		list: (*client.Client).ListKeys, remove: (*client.Client).DeleteKey,
		name: keyName, find: findKey, table: c.keyTable, complete: c.completeKeys,
	}
	cmd := noun("key", "Manage API keys", c.keyCreateCommand(), lsOf(c, k), rmOf(c, k))
	cmd.Aliases = []string{"keys"}
	return cmd
}

func (c *cli) keyTable(keys []api.Key, _ bool) table {
	t := table{head: []string{"ID", "NAME", "LAST USED", "AGE"}}
	for _, k := range keys {
		used := "never"
		if k.LastUsedAt != nil {
			used = c.age(*k.LastUsedAt) + " ago"
		}
		t.row(k.ID, k.Name, used, c.age(k.CreatedAt))
	}
	return t
}

func (c *cli) keyCreateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make an API key and print its secret, which is shown this once only", Args: oneArg("name"),
		Example: "  (umask 077; hatch key create ci > ci.key)",
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			key, err := server.CreateKey(cmd.Context(), api.CreateKey{Name: args[0]})
			if err != nil {
				return fmt.Errorf("cannot create the key: %w", err)
			}
			return c.printOne(key, func() {
				fmt.Fprintf(c.err, "%s; its secret is not shown again\n", clean(key.ID))
				fmt.Fprintln(c.out, key.Secret)
			})
		},
	}
}
