// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kingpin/v2"
)

// explainFlags returns the error that kingpin has for command-line arguments, with the flag and the
// remedy where kingpin names neither.
func explainFlags(app *kingpin.Application, args []string, err error) error {
	flags := app.Model().Flags
	for _, arg := range args {
		if arg == "--" {
			break
		}
		name, isLong := strings.CutPrefix(arg, "--")
		name, value, hasValue := strings.Cut(name, "=")
		flag := flagNamed(flags, name)
		switch {
		case !isLong && len(arg) > 2 && arg[0] == '-':
			name, _, _ = strings.Cut(arg[1:], "=")
			if flagNamed(flags, name) != nil {
				return fmt.Errorf("unknown flag -%s: use -%s", name, arg)
			}
		case !isLong:
		case flag == nil:
			if meant := closest(name, flagNames(flags)); meant != "" {
				return fmt.Errorf("unknown flag --%s: did you mean --%s?", name, meant)
			}
			return fmt.Errorf("unknown flag --%s, try --help", name)
		case hasValue && flag.IsBoolFlag():
			return fmt.Errorf("--%s: %q: the flag takes no value: use --%s or --no-%s", name, value, flag.Name, flag.Name)
		}
	}
	for _, choice := range []struct{ prefix, flag, values string }{
		{"unrecognized log level ", "log.level", "debug, info, warn and error"},
		{"unrecognized log format ", "log.format", "logfmt and json"},
	} {
		if value, ok := strings.CutPrefix(err.Error(), choice.prefix); ok {
			return flagError(choice.flag, fmt.Errorf("%q is not one of %s, try --help", value, choice.values))
		}
	}
	if value, ok := strings.CutPrefix(err.Error(), "unexpected "); ok {
		return fmt.Errorf("unexpected argument %q: every setting is a flag, such as --audit.device=%s, try --help", value, value)
	}
	return fmt.Errorf("%w, try --help", err)
}

// flagNamed returns the flag of a name, which may be negated, or nil.
func flagNamed(flags []*kingpin.FlagModel, name string) *kingpin.FlagModel {
	i := slices.IndexFunc(flags, func(f *kingpin.FlagModel) bool {
		return f.Name == name || f.IsBoolFlag() && "no-"+f.Name == name
	})
	if i < 0 {
		return nil
	}
	return flags[i]
}

// flagNames returns the names of all flags, and the negated names of those without a value.
func flagNames(flags []*kingpin.FlagModel) (names []string) {
	for _, flag := range flags {
		names = append(names, flag.Name)
		if flag.IsBoolFlag() {
			names = append(names, "no-"+flag.Name)
		}
	}
	return names
}

// checkEnvironment returns an error if a variable was probably meant for a flag, but is none of its
// variables. Other variables are ignored: Kubernetes sets XDP_AUDIT_EXPORTER_PORT, for example.
func checkEnvironment(app *kingpin.Application, environment []string) error {
	const prefix = "XDP_"
	natural := map[string]string{} // variables by the names that one would expect
	var variables []string
	for _, flag := range app.Model().Flags {
		if flag.Envar != "" {
			variables = append(variables, flag.Envar)
			natural[prefix+strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(flag.Name))] = flag.Envar
		}
	}
	for _, entry := range environment {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, prefix) || slices.Contains(variables, name) {
			continue
		}
		if meant := cmp.Or(natural[name], closest(name, variables)); meant != "" {
			return fmt.Errorf("the environment variable %s sets no flag: use %s, or remove it", name, meant)
		}
	}
	return nil
}

// maxTypos is the number of wrong letters up to which a name counts as misspelled.
const maxTypos = 2

// closest returns the name that a misspelled one was probably meant to be, or nothing. It also
// completes the last part of a name with dots.
func closest(misspelled string, names []string) string {
	distanceTo := func(name string) int {
		least := distance(misspelled, name)
		if _, last, hasParts := strings.Cut(name, "."); hasParts && !strings.Contains(misspelled, ".") {
			least = min(least, distance(misspelled, last))
		}
		return least
	}
	nearest := slices.MinFunc(names, func(a, b string) int { return cmp.Compare(distanceTo(a), distanceTo(b)) })
	if distanceTo(nearest) > min(maxTypos, len(misspelled)/3) {
		return ""
	}
	return nearest
}

// distance returns the number of letters to insert, remove or replace to make one text of the other
// (the Levenshtein distance).
func distance(a, b string) int {
	row := make([]int, len(b)+1) // distances of the first letters of a to those of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// boolean parses the value of an environment variable.
func boolean(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("is not true or false")
	}
	return b, nil
}
