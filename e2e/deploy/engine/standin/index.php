<?php
// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Writes the note that it is sent to the database, and answers with how it was asked and
// with all notes that are there.
// It finds the database in the settings that Drupal would read.
include 'sites/default/settings.php';
$c = $databases['default']['default'];
$db = new PDO("mysql:host={$c['host']};port={$c['port']};dbname={$c['database']}", $c['username'], $c['password']);
$db->exec('CREATE TABLE IF NOT EXISTS note (id INT AUTO_INCREMENT PRIMARY KEY, text VARCHAR(99))');
if (isset($_GET['note'])) {
  $db->prepare('INSERT INTO note (text) VALUES (?)')->execute([$_GET['note']]);
}
header('Content-Type: text/plain');
foreach (['HTTPS', 'HTTP_HOST', 'HTTP_X_FORWARDED_FOR'] as $name) {
  echo $name, '=', $_SERVER[$name] ?? '', "\n";
}
foreach ($db->query('SELECT text FROM note ORDER BY id') as $row) {
  echo 'note=', $row['text'], "\n";
}
