<?php
// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Drupal's settings, from the environment of its container.

$databases['default']['default'] = [
  'driver' => 'mysql',
  'host' => getenv('DRUPAL_DB_HOST'),
  'port' => '3306',
  'database' => getenv('DRUPAL_DB_NAME'),
  'username' => getenv('DRUPAL_DB_USER'),
  'password' => getenv('DRUPAL_DB_PASSWORD'),
  'prefix' => '',
];

// One-time links must outlive the container, so this comes from what outlives it too.
$settings['hash_salt'] = hash('sha256', 'hash_salt' . getenv('DRUPAL_DB_PASSWORD'));

$settings['trusted_host_patterns'] = ['^drupal\.enclave$'];
$settings['update_free_access'] = FALSE;
$settings['config_sync_directory'] = 'sites/default/files/sync';

// Nobody but the gateway reaches Apache, so whoever asks is the gateway.
$settings['reverse_proxy'] = TRUE;
$settings['reverse_proxy_addresses'] = [$_SERVER['REMOTE_ADDR'] ?? '127.0.0.1'];
