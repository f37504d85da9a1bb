package mesh.apps.sofaregistry;

import com.alipay.sofa.registry.client.api.ConfigDataObserver;
import com.alipay.sofa.registry.client.api.Publisher;
import com.alipay.sofa.registry.client.api.RegistryClient;
import com.alipay.sofa.registry.client.api.Subscriber;
import com.alipay.sofa.registry.client.api.model.RegistryType;
import com.alipay.sofa.registry.client.api.model.UserData;
import com.alipay.sofa.registry.client.api.registration.ConfiguratorRegistration;
import com.alipay.sofa.registry.client.api.registration.PublisherRegistration;
import com.alipay.sofa.registry.client.api.registration.SubscriberRegistration;
import com.alipay.sofa.registry.client.provider.DefaultRegistryClient;
import com.alipay.sofa.registry.client.provider.DefaultRegistryClientConfigBuilder;
import com.alipay.sofa.registry.core.model.ScopeEnum;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import mesh.apps.Console;
import mesh.apps.Flags;

/**
 * The stock SOFARegistry client, {@code --host} and {@code --port} of a session server's HTTP, {@code --zone}. Commands, each
 * answered by one line (an id is a dataId and a group):
 *
 * <ul>
 *   <li>{@code publish ID GROUP DATA...}: registers, or publishes anew; {@code unpublish ID GROUP};
 *   <li>{@code subscribe ID GROUP SCOPE}; {@code unsubscribe ID GROUP};
 *   <li>{@code seen ID GROUP}: what was pushed last, as {@code zone=[data, data]}, or {@code nothing};
 *   <li>{@code pushes ID GROUP}: how often something was pushed;
 *   <li>{@code watch ID GROUP}: a configuration item; {@code config ID GROUP}: what was pushed last, or {@code nothing};
 *   <li>those of {@link Rpc};
 *   <li>{@code quit}.
 * </ul>
 */
public final class Client {
    private final RegistryClient registry;
    private final Map<String, Publisher> publishers = new HashMap<>();
    private final Map<String, Subscriber> subscribers = new HashMap<>();
    private final Map<String, Integer> pushes = new ConcurrentHashMap<>();
    private final Map<String, String> seen = new ConcurrentHashMap<>();
    private final Map<String, String> configs = new ConcurrentHashMap<>();
    private final Rpc rpc;

    private Client(Flags flags) {
        String host = flags.require("host");
        int port = flags.number("port", 9603);
        DefaultRegistryClient client = new DefaultRegistryClient(DefaultRegistryClientConfigBuilder.start()
                .setRegistryEndpoint(host)
                .setRegistryEndpointPort(port)
                .setAppName("registry-client")
                .setDataCenter("DefaultDataCenter")
                .setZone(flags.get("zone", "DEFAULT_ZONE"))
                // A busy machine is no broken server.
                .setConnectTimeout(10_000)
                .setInvokeTimeout(10_000)
                .setSocketTimeout(10_000)
                .build());
        client.init();
        registry = client;
        rpc = new Rpc(host + ":" + port);
    }

    private String run(String[] words) {
        String command = words[0];
        if (rpc.knows(command)) {
            return rpc.run(words);
        }
        String dataId = words[1];
        String group = words[2];
        String key = dataId + " " + group;
        switch (command) {
            case "publish" -> {
                String[] data = Arrays.copyOfRange(words, 3, words.length);
                Publisher publisher = publishers.get(key);
                if (publisher == null) {
                    PublisherRegistration registration = new PublisherRegistration(dataId);
                    registration.setGroup(group);
                    publishers.put(key, registry.register(registration, data));
                } else {
                    publisher.republish(data);
                }
            }
            case "unpublish" -> {
                registry.unregister(dataId, group, RegistryType.PUBLISHER);
                publishers.remove(key);
            }
            case "subscribe" -> {
                SubscriberRegistration registration = new SubscriberRegistration(dataId, (id, data) -> {
                    seen.put(key, describe(data));
                    pushes.merge(key, 1, Integer::sum);
                });
                registration.setGroup(group);
                registration.setScopeEnum(ScopeEnum.valueOf(words[3]));
                subscribers.put(key, registry.register(registration));
            }
            case "unsubscribe" -> {
                registry.unregister(dataId, group, RegistryType.SUBSCRIBER);
                subscribers.remove(key);
                seen.remove(key);
            }
            case "seen" -> {
                return seen.getOrDefault(key, "nothing");
            }
            case "pushes" -> {
                return pushes.getOrDefault(key, 0).toString();
            }
            case "watch" -> {
                ConfigDataObserver observer = (id, data) -> configs.put(key, String.valueOf(data.getData()));
                ConfiguratorRegistration registration = new ConfiguratorRegistration(dataId, observer);
                registration.setGroup(group);
                registry.register(registration);
            }
            case "config" -> {
                return configs.getOrDefault(key, "nothing");
            }
            default -> {
                return "unknown command: " + command;
            }
        }
        return "done";
    }

    private static String describe(UserData data) {
        Map<String, List<String>> zones = new TreeMap<>();
        data.getZoneData().forEach((zone, boxes) -> {
            List<String> sorted = new ArrayList<>(boxes);
            Collections.sort(sorted);
            if (!sorted.isEmpty()) {
                zones.put(zone, sorted);
            }
        });
        return zones.toString();
    }

    public static void main(String[] args) {
        Console console = new Console();
        Client client = new Client(new Flags(args));
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            if (line.equals("quit")) {
                System.exit(0);
            }
            try {
                console.print(client.run(line.split(" ")));
            } catch (RuntimeException failure) {
                failure.printStackTrace();
                console.print("error " + failure);
            }
        }
        Runtime.getRuntime().halt(0);
    }
}
