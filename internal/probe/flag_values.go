// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/alecthomas/kingpin/v2"
)

// addFlag adds a flag whose default is the value of target.
func addFlag[T any](app *kingpin.Application, name, help string, target *T, parse func(string) (T, error)) *kingpin.FlagClause {
	flag := app.Flag(name, help).Default(fmt.Sprint(*target))
	flag.SetValue(flagValue[T]{name, target, parse})
	return flag
}

// flagValue is a kingpin.Value that names its flag in the error of an invalid value.
type flagValue[T any] struct {
	name   string
	target *T
	parse  func(string) (T, error)
}

func (v flagValue[T]) String() string { return fmt.Sprint(*v.target) }

func (v flagValue[T]) Set(s string) (err error) {
	if *v.target, err = v.parse(s); err != nil {
		return fmt.Errorf("--%s: %q %w", v.name, s, err)
	}
	return nil
}

func text(s string) (string, error) { return s, nil }

func number(s string) (float64, error) {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, errors.New("is not a number")
	}
	return n, nil
}

func wholeNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, errors.New("is not a whole number of 0 or more")
	}
	return n, nil
}

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("is not a duration such as 1s or 250us")
	}
	return d, nil
}
