package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// printFields writes an object's fields as lines of a name and a value, in the
// API's order.
func (c *cli) printFields(object any) {
	var b bytes.Buffer
	if err := writeJSON(&b, object, false); err != nil {
		return
	}
	d := json.NewDecoder(&b)
	if _, err := d.Token(); err != nil {
		return
	}
	t := table{head: []string{"FIELD", "VALUE"}}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return
		}
		t.row(fmt.Sprint(name), plainValue(value))
	}
	_ = t.write(c.out, c.colour())
}

// plainValue is a JSON value without the quotes of a string.
func plainValue(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return s
	}
	return strings.TrimSpace(string(value))
}
