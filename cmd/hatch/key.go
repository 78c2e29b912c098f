package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var keyKind = kind[api.Key]{
	noun: "key", ls: "hatch key ls",
	list: (*client.Client).ListKeys,
	name: func(k api.Key) named { return named{k.ID, k.Name} },
}

// keyCommands are hatch key.
type keyCommands struct {
	*printer
	*connection
}

func (c keyCommands) command() *cobra.Command {
	common := nounCommands[api.Key]{
		printer: c.printer, connection: c.connection, kind: keyKind,
		remove: (*client.Client).DeleteKey, table: c.table,
	}
	var force bool
	common.check = func(k api.Key) error {
		if k.Current && !force {
			return hint(errors.New("it is the key that this command uses"), "create another one first, or hatch key rm --force %s", k.ID)
		}
		return nil
	}
	rm := common.rmCommand()
	rm.Long = "Delete API keys. The key that this command uses is deleted with --force only."
	rm.Flags().BoolVarP(&force, "force", "f", false, "delete the key that this command uses, too")
	return noun("key", "Manage API keys", c.createCommand(), common.lsCommand("List API keys, without their secrets"), rm)
}

func (c keyCommands) table(keys []api.Key, wide bool) table {
	t := table{head: []string{"ID", "NAME", "LAST USED", "AGE"}}
	if wide {
		t.head = append(t.head, "IN USE HERE")
	}
	for _, k := range keys {
		used := "never"
		if k.LastUsedAt != nil {
			used = c.age(*k.LastUsedAt) + " ago"
		}
		cells := []string{k.ID, k.Name, used, c.age(k.CreatedAt)}
		if wide {
			cells = append(cells, yesNo(k.Current))
		}
		t.row(cells...)
	}
	return t
}

func (c keyCommands) createCommand() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Create an API key and print its secret, which is shown only once", Args: oneArg("name"),
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
