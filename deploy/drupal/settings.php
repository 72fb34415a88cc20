<?php
// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Settings of Drupal, from the environment of its container.

$databases['default']['default'] = [
  'driver' => 'mysql',
  'host' => getenv('DRUPAL_DB_HOST'),
  'port' => '3306',
  'database' => getenv('DRUPAL_DB_NAME'),
  'username' => getenv('DRUPAL_DB_USER'),
  'password' => getenv('DRUPAL_DB_PASSWORD'),
  'prefix' => '',
];

// One-time links must stay valid when the container is recreated, so derive the salt from a
// secret that does not change.
$settings['hash_salt'] = hash('sha256', 'hash_salt' . getenv('DRUPAL_DB_PASSWORD'));

$settings['trusted_host_patterns'] = ['^drupal\.enclave$'];
$settings['update_free_access'] = FALSE;
$settings['config_sync_directory'] = 'sites/default/files/sync';

// Only the gateway reaches Apache, so the address of every client is that of the gateway.
$settings['reverse_proxy'] = TRUE;
$settings['reverse_proxy_addresses'] = [$_SERVER['REMOTE_ADDR'] ?? '127.0.0.1'];
