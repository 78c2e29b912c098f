package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile limits the configuration file, in bytes.
const maxFile = 1 << 20

// parseFile parses a file with a YAML mapping of settings to scalars or lists of scalars.
func parseFile(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("the file is longer than %d bytes, the limit", maxFile)
	}
	return parseYAML(text)
}

func parseYAML(text []byte) (map[string]string, error) {
	var nodes map[string]yaml.Node
	if err := yaml.Unmarshal(text, &nodes); err != nil {
		return nil, fmt.Errorf("the file is not a YAML mapping of settings to values: %w", err)
	}
	values := make(map[string]string, len(nodes))
	for key, node := range nodes {
		value, err := scalar(node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		values[key] = strings.TrimSpace(value)
	}
	return values, nil
}

var errNotScalar = errors.New("must be a value or a list of values")

// scalar returns a value as it is written, and joins a list with commas.
func scalar(node yaml.Node) (string, error) {
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return "", nil
	case node.Kind == yaml.ScalarNode:
		return node.Value, nil
	case node.Kind != yaml.SequenceNode:
		return "", errNotScalar
	}
	var parts []string
	for _, item := range node.Content {
		if item.Kind != yaml.ScalarNode {
			return "", errNotScalar
		}
		parts = append(parts, item.Value)
	}
	return strings.Join(parts, ","), nil
}
